//! HTML pages: the report (`report.html`) and what every page of ours is made of, a frame that needs nothing but
//! itself, escaped text, embedded thumbnails.
//!
//! File names and labels come from outside, and a page is opened in somebody's browser. So text goes through [`escape`],
//! in element and in (quoted) attribute alike; and should that ever be forgotten, the page's own policy still forbids
//! scripts that are not ours, and whatever would come over the network.

mod charts;
mod gallery;
mod page;
mod sweep;
mod thumbnails;

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use sha2::{Digest, Sha256};

use super::table::Table;
use crate::stages::decode::{self, DecodeError, DecodeOptions, Exif};
use crate::text::turns_direction;

pub use page::Html;
pub use sweep::sweep_page;
pub use thumbnails::Pictures;

/// Longer side of a thumbnail in pixels: sharp on a dense screen at the 160 that the style shows.
const THUMBNAIL: u32 = 320;
const JPEG_QUALITY: u8 = 80;

const SEARCH_STYLE: &str = include_str!("search.css");

/// A page of a title and what follows it. `title` is text, `body` is HTML.
pub fn page(title: &str, body: &str) -> String {
    let body = format!("<h1>{}</h1>\n{body}", escape(title));
    frame(title, &[SEARCH_STYLE], None, &body)
}

/// A whole document. `title` is text, `body` is HTML; nothing but these styles and this script has an effect in it.
fn frame(title: &str, styles: &[&str], script: Option<&str>, body: &str) -> String {
    let sources = |texts: &[&str]| match texts {
        [] => "'none'".to_owned(),
        _ => texts.iter().map(|text| source(text)).collect::<Vec<_>>().join(" "),
    };
    let script_tag = script.map_or(String::new(), |script| format!("<script>{script}</script>\n"));
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; img-src data:; base-uri 'none'; form-action 'none'",
        sources(styles),
        sources(script.as_slice())
    );
    let styles: String = styles.iter().map(|style| format!("<style>{style}</style>\n")).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n{styles}</head>\n<body>\n{body}{script_tag}</body>\n</html>\n",
        escape(title)
    )
}

/// An inline style or script as a policy names it.
fn source(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// A picture with lines of text below it, the first of them in bold. A picture that cannot be shown is replaced by the reason.
pub fn figure(picture: &Result<String, String>, lines: &[&str]) -> String {
    let mut html = match picture {
        Ok(uri) => format!("<figure><img src=\"{}\" alt=\"\">", escape(uri)),
        Err(reason) => format!("<figure><div class=\"none\">{}</div>", escape(reason)),
    };
    html += "<figcaption>";
    for (i, line) in lines.iter().enumerate() {
        let tag = if i == 0 { "strong" } else { "small" };
        // Writing to a string cannot fail.
        let _ = write!(html, "<{tag}>{}</{tag}>", escape(line));
    }
    html + "</figcaption></figure>\n"
}

/// A file's picture as a small `data:` URI, turned as its EXIF orientation says.
///
/// # Errors
/// See [`decode::decode`].
pub fn thumbnail(bytes: &[u8], max_pixels: u64) -> Result<String, DecodeError> {
    let picture = decode::decode(bytes, &DecodeOptions { exif: Exif::Apply, max_pixels })?;
    let corrupt = || DecodeError::Corrupt("its size and its pixels do not agree".into());
    let mut picture = RgbImage::from_raw(picture.width, picture.height, picture.rgb).ok_or_else(corrupt)?;
    let longer = picture.width().max(picture.height());
    if longer > THUMBNAIL {
        let scaled = |side: u32| (u64::from(side) * u64::from(THUMBNAIL) / u64::from(longer)).max(1) as u32;
        picture = image::imageops::thumbnail(&picture, scaled(picture.width()), scaled(picture.height()));
    }
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .encode_image(&picture)
        .map_err(|error| DecodeError::Corrupt(error.to_string()))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}

/// Text for an element, or for an attribute in quotes. Characters that could hide what follows, or turn it round, become �.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            c => push_safe(&mut escaped, c),
        }
    }
    escaped
}

/// A sentence of the Markdown report, where what came from outside is escaped already, as HTML that says the same.
fn from_markdown(sentence: &str) -> String {
    let mut html = String::with_capacity(sentence.len());
    let mut strong = false;
    let mut rest = sentence.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if rest.peek().is_some_and(char::is_ascii_punctuation) => {
                rest.next().into_iter().for_each(|c| push_safe(&mut html, c));
            }
            '*' if rest.next_if_eq(&'*').is_some() => {
                strong = !strong;
                html += if strong { "<strong>" } else { "</strong>" };
            }
            // The entities of Markdown's escape are HTML's.
            '&' => html.push('&'),
            c => push_safe(&mut html, c),
        }
    }
    if strong { html + "</strong>" } else { html }
}

fn push_safe(html: &mut String, c: char) {
    match c {
        '<' => *html += "&lt;",
        '>' => *html += "&gt;",
        '"' => *html += "&quot;",
        '\'' => *html += "&#39;",
        c => html.push(seen(c)),
    }
}

/// Text, not yet escaped, in which nothing is hidden.
fn harmless(text: &str) -> String {
    text.chars().map(seen).collect()
}

fn seen(c: char) -> char {
    match c {
        '\n' | '\r' => '↵',
        c if c.is_control() || turns_direction(c) => '\u{fffd}',
        c => c,
    }
}

/// A table of the report, which scrolls within its own frame. `caption` is text.
fn table(values: &Table, caption: &str) -> String {
    table_with(values, None, caption)
}

/// The same, where a table of the same rows and columns has what is shown smaller below some of the values.
fn table_with(values: &Table, below: Option<&Table>, caption: &str) -> String {
    let caption = escape(caption);
    let mut html = format!(
        "<div class=\"scroll\" role=\"group\" tabindex=\"0\" aria-label=\"{caption}\"><table>\n\
         <caption>{caption}</caption>\n<thead><tr>"
    );
    let heads = values.header.iter().map(|name| format!("<th scope=\"col\">{}</th>", from_markdown(name)));
    html.extend(heads);
    html += "</tr></thead>\n<tbody>\n";
    for row in &values.rows {
        let Some((name, cells)) = row.split_first() else { continue };
        html += &format!("<tr><th scope=\"row\"><bdi>{}</bdi></th>", from_markdown(name));
        let more = below.and_then(|below| below.rows.iter().find(|other| other.first() == Some(name)));
        for (i, cell) in cells.iter().enumerate() {
            let more = more.and_then(|more| more.get(i + 1));
            let more = more.map_or(String::new(), |more| format!("<small>{}</small>", from_markdown(more)));
            html += &format!("<td>{}{more}</td>", from_markdown(cell));
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n"
}

/// Sentences of the Markdown report as a list; nothing where there are none.
fn list(class: &str, sentences: &[String]) -> String {
    if sentences.is_empty() {
        return String::new();
    }
    let items: String =
        sentences.iter().map(|sentence| format!("<li>{}</li>\n", from_markdown(sentence))).collect();
    format!("<ul class=\"{class}\">\n{items}</ul>\n")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::ImageFormat;

    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 128]))
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "\"><img src=x onerror='alert(1)'>&\0\n";
        let safe = "&quot;&gt;&lt;img src=x onerror=&#39;alert(1)&#39;&gt;&amp;\u{fffd}↵";
        assert_eq!(escape(hostile), safe);
        assert_eq!(
            from_markdown(&super::super::markdown::escape(hostile)),
            safe.replace("&#39;", "'").replace("'", "&#39;")
        );
        assert_eq!(escape("gpj.\u{202e}live"), "gpj.\u{fffd}live");
        let missing = Err(hostile.to_owned());
        for html in [page(hostile, ""), figure(&missing, &[hostile]), figure(&Ok(hostile.into()), &[])] {
            assert!(!html.contains("<img src=x") && html.contains(safe), "{html}");
        }
    }

    #[test]
    fn a_thumbnail_keeps_its_shape_and_is_small() {
        let shape = |bytes: &[u8]| {
            let uri = thumbnail(bytes, u64::MAX).unwrap();
            let jpeg = STANDARD.decode(uri.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
            let image = image::load_from_memory_with_format(&jpeg, ImageFormat::Jpeg).unwrap();
            (image.width(), image.height())
        };
        assert_eq!(shape(&png(640, 320)), (320, 160));
        assert_eq!(shape(&png(32, 20)), (32, 20), "a small one is not enlarged");
        assert_eq!(shape(&png(2000, 1)), (320, 1));
        assert!(matches!(thumbnail(b"no picture", u64::MAX), Err(DecodeError::NotAPicture)));
        assert!(matches!(thumbnail(&png(40, 40), 100), Err(DecodeError::TooLarge { .. })));
    }
}
