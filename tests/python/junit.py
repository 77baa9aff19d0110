"""Reads JUnit XML as CI does, with junitparser, after holding it to the common form that Jenkins, GitLab and GitHub's reporters
share: which elements stand in which, and which attributes they must and may have.

Arguments: files. Prints a JSON object for each.
"""

import json
import sys
from xml.etree import ElementTree

from junitparser import JUnitXml

TEXT = ({"type", "message"}, set(), set())
# Element: attributes it may have, attributes it must have, elements inside it.
FORM = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, set(), {"testsuite"}),
    "testsuite": (
        {"skipped", "time", "timestamp", "hostname", "id", "package", "file"},
        {"name", "tests", "failures", "errors"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": (set(), {"name", "value"}, set()),
    "testcase": ({"classname", "time", "file"}, {"name"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "failure": TEXT,
    "error": TEXT,
    "skipped": TEXT,
}


def check(element):
    may, must, inside = FORM[element.tag]
    attributes = set(element.attrib)
    assert must <= attributes <= may | must, (element.tag, attributes)
    for number in {"tests", "failures", "errors", "skipped"} & attributes:
        int(element.get(number))
    if "time" in attributes:
        float(element.get("time"))
    for child in element:
        assert child.tag in inside, (element.tag, child.tag)
        check(child)


for path in sys.argv[1:]:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    check(root)
    suites = JUnitXml.fromfile(path)
    cases = [case for suite in suites for case in suite]
    results = [result for case in cases for result in case.result]
    # What is stated is what is there.
    assert (suites.tests, suites.failures, suites.errors) == (
        len(cases),
        sum(type(result).__name__ == "Failure" for result in results),
        sum(type(result).__name__ == "Error" for result in results),
    )
    print(
        json.dumps(
            {
                "suites": [suite.name for suite in suites],
                "properties": {entry.name: entry.value for suite in suites for entry in suite.properties()},
                "tests": [
                    {
                        "class": case.classname,
                        "name": case.name,
                        "result": [type(result).__name__ for result in case.result],
                        "message": [result.message for result in case.result],
                    }
                    for case in cases
                ],
            }
        )
    )
