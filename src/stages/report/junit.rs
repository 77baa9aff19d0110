//! The gate as JUnit XML, which GitLab, Jenkins and GitHub's test reporters show: one test for each check.
//!
//! Without a gate there is one test, skipped: a file without tests is an error to Jenkins, and one that passes would claim
//! that somebody had looked. A baseline that does not fit is a test that ends with an error.

use std::io::{self, Write};

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use serde_json::Value;

use super::{Exporter, RunReport};
use crate::stages::gate::{Check, Rule};

/// The gate as JUnit XML.
#[derive(Debug, Clone, Copy)]
pub struct Junit;

impl Exporter for Junit {
    fn write(&self, report: &RunReport, out: &mut dyn Write) -> io::Result<()> {
        let checks = &report.gate.checks;
        let count = |wanted: bool| checks.iter().filter(|check| check.passed == wanted).count().to_string();
        let incomparable = report.gate.incomparable.as_deref();
        let errors = usize::from(incomparable.is_some());
        let (tests, failures) = ((checks.len() + errors).max(1).to_string(), count(false));
        let (errors, skipped) = (errors.to_string(), if report.gate.is_empty() { "1" } else { "0" });
        let name = format!("imagedex: {}", plain(&report.name));
        // Times are those of the checks, which take none; some readers stumble where they are missing.
        let counts = [
            ("name", name.as_str()),
            ("tests", &tests),
            ("failures", &failures),
            ("errors", &errors),
            ("skipped", skipped),
            ("time", "0"),
        ];
        let mut xml = Writer::new_with_indent(out, b' ', 2);
        xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
        let all = counts.into_iter().filter(|(name, _)| *name != "skipped");
        xml.create_element("testsuites").with_attributes(all).write_inner_content(|xml| {
            xml.create_element("testsuite").with_attributes(counts).write_inner_content(|xml| {
                write_provenance(&report.provenance, xml)?;
                if report.gate.is_empty() {
                    return write_skipped(report, xml);
                }
                if let Some(reason) = incomparable {
                    write_incomparable(report, reason, xml)?;
                }
                checks.iter().try_for_each(|check| write_check(report, check, xml))
            })?;
            Ok(())
        })?;
        writeln!(xml.get_mut())
    }
}

type Xml<'a> = Writer<&'a mut dyn Write>;

fn write_provenance(provenance: &Value, xml: &mut Xml) -> io::Result<()> {
    let Some(facts) = provenance.as_object().filter(|facts| !facts.is_empty()) else { return Ok(()) };
    xml.create_element("properties").write_inner_content(|xml| {
        facts.iter().try_for_each(|(name, fact)| {
            let text = fact.as_str().map_or_else(|| fact.to_string(), str::to_owned);
            let attributes = [("name", plain(name)), ("value", plain(&text))];
            let attributes = attributes.iter().map(|(key, value)| (*key, value.as_str()));
            xml.create_element("property").with_attributes(attributes).write_empty().map(drop)
        })
    })?;
    Ok(())
}

fn write_skipped(report: &RunReport, xml: &mut Xml) -> io::Result<()> {
    let class = class_part(&report.name);
    let attributes = [("classname", class.as_str()), ("name", "gate"), ("time", "0")];
    xml.create_element("testcase").with_attributes(attributes).write_inner_content(|xml| {
        let message = ("message", "the pipeline file sets no [gate], so nothing was checked");
        xml.create_element("skipped").with_attribute(message).write_empty().map(drop)
    })?;
    Ok(())
}

fn write_incomparable(report: &RunReport, reason: &str, xml: &mut Xml) -> io::Result<()> {
    let class = class_part(&report.name);
    let attributes = [("classname", class.as_str()), ("name", "baseline"), ("time", "0")];
    xml.create_element("testcase").with_attributes(attributes).write_inner_content(|xml| {
        let reason = plain(reason);
        let attributes = [("type", "baseline"), ("message", reason.as_str())];
        let error = xml.create_element("error").with_attributes(attributes);
        error.write_text_content(BytesText::new(&reason)).map(drop)
    })?;
    Ok(())
}

fn write_check(report: &RunReport, check: &Check, xml: &mut Xml) -> io::Result<()> {
    let engine = check.engine.as_deref().unwrap_or("no engine");
    let mode = check.mode.map_or(String::new(), |mode| format!(".{}", mode.name()));
    let class = format!("{}.{}{mode}", class_part(&report.name), class_part(engine));
    let name = plain(&asked(check));
    let attributes = [("classname", class.as_str()), ("name", &name), ("time", "0")];
    let test = xml.create_element("testcase").with_attributes(attributes);
    if check.passed {
        test.write_empty()?;
        return Ok(());
    }
    test.write_inner_content(|xml| {
        let message = plain(&format!("{check:#}"));
        let attributes = [("type", "gate"), ("message", message.as_str())];
        let text = format!("{message}; {}", plain(&origin(check)));
        xml.create_element("failure")
            .with_attributes(attributes)
            .write_text_content(BytesText::new(&text))
            .map(drop)
    })?;
    Ok(())
}

/// Readers take what stands before a dot for a package, so only the parts of a name have one between them.
fn class_part(text: &str) -> String {
    plain(text).replace('.', "_")
}

/// What a check asks for: `cosine P@1 at least 0.6`.
fn asked(check: &Check) -> String {
    let Check { metric, measure, minimum, .. } = check;
    match (&check.fall, check.rule) {
        (Some(fall), _) => {
            let of_class = fall.class.as_ref().map_or(String::new(), |class| format!(" of class {class}"));
            format!("{metric} {measure}{of_class} at most {} below the baseline", fall.tolerated)
        }
        (None, Rule::ExactEngine) => format!("{metric} {measure} of an exact engine is 1"),
        (None, Rule::Minimum | Rule::Baseline) => format!("{metric} {measure} at least {minimum}"),
    }
}

/// Where a check is set.
fn origin(check: &Check) -> String {
    match check.rule {
        Rule::Minimum => {
            format!("set by [gate.{}] \"{}\" in the pipeline file", check.metric, check.measure)
        }
        Rule::ExactEngine => "always on: an exact engine must return the nearest pictures".to_owned(),
        Rule::Baseline => "set by [baseline] in the pipeline file".to_owned(),
    }
}

/// Text that XML can hold, in one line: it has no way to write most control characters.
fn plain(text: &str) -> String {
    let one = |c: char| match c {
        '\n' | '\r' => '↵',
        '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::stages::evaluate::Mode;
    use crate::stages::gate::Verdict;
    use serde_json::json;

    fn junit(provenance: Value, checks: Vec<Check>) -> String {
        let report = RunReport::new("shop 1.2 <&\"'\u{1}\n>", provenance, Vec::new());
        let mut xml = Vec::new();
        Junit
            .write(&report.with_gate(Verdict { checks, incomparable: None }), &mut xml)
            .expect("into memory");
        String::from_utf8(xml).expect("UTF-8")
    }

    fn check(found: Option<f64>) -> Check {
        Check {
            rule: Rule::Minimum,
            engine: Some("flat".to_owned()),
            mode: Some(Mode::HeldOut),
            metric: Metric::Cosine,
            measure: "P@1".to_owned(),
            minimum: 0.6,
            found,
            passed: found.is_some_and(|found| found >= 0.6),
            fall: None,
        }
    }

    #[test]
    fn a_test_for_each_check() {
        let without_engine = Check { engine: None, mode: None, ..check(None) };
        let inexact = Check { rule: Rule::ExactEngine, minimum: 1.0, passed: false, ..check(Some(0.98)) };
        let checks = vec![check(Some(0.75)), check(Some(0.5)), without_engine, inexact];
        assert_eq!(
            junit(json!({"model": "vgg<16>", "batch": 8}), checks),
            r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="imagedex: shop 1.2 &lt;&amp;&quot;&apos;�↵&gt;" tests="4" failures="3" errors="0" time="0">
  <testsuite name="imagedex: shop 1.2 &lt;&amp;&quot;&apos;�↵&gt;" tests="4" failures="3" errors="0" skipped="0" time="0">
    <properties>
      <property name="batch" value="8"/>
      <property name="model" value="vgg&lt;16&gt;"/>
    </properties>
    <testcase classname="shop 1_2 &lt;&amp;&quot;&apos;�↵&gt;.flat.held_out" name="cosine P@1 at least 0.6" time="0"/>
    <testcase classname="shop 1_2 &lt;&amp;&quot;&apos;�↵&gt;.flat.held_out" name="cosine P@1 at least 0.6" time="0">
      <failure type="gate" message="flat held_out cosine P@1 0.5000 is below 0.6">flat held_out cosine P@1 0.5000 is below 0.6; set by [gate.cosine] &quot;P@1&quot; in the pipeline file</failure>
    </testcase>
    <testcase classname="shop 1_2 &lt;&amp;&quot;&apos;�↵&gt;.no engine" name="cosine P@1 at least 0.6" time="0">
      <failure type="gate" message="cosine P@1 was not measured: no engine here has that metric">cosine P@1 was not measured: no engine here has that metric; set by [gate.cosine] &quot;P@1&quot; in the pipeline file</failure>
    </testcase>
    <testcase classname="shop 1_2 &lt;&amp;&quot;&apos;�↵&gt;.flat.held_out" name="cosine P@1 of an exact engine is 1" time="0">
      <failure type="gate" message="flat held_out says it is exact, but its cosine P@1 is 0.9800">flat held_out says it is exact, but its cosine P@1 is 0.9800; always on: an exact engine must return the nearest pictures</failure>
    </testcase>
  </testsuite>
</testsuites>
"#
        );
    }

    #[test]
    fn without_a_gate_one_test_is_skipped() {
        let xml = junit(json!({}), Vec::new());
        assert!(xml.contains(r#"tests="1" failures="0" errors="0" skipped="1" time="0">"#), "{xml}");
        assert!(xml.contains(r#"name="gate" time="0">"#) && xml.contains("<skipped message="), "{xml}");
        assert!(!xml.contains("properties"), "{xml}");
    }
}
