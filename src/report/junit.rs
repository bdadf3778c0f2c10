//! A gate's verdict as JUnit XML: a test case a rule, in the structure that Jenkins' junit plugin and Surefire's schema
//! (maven-surefire, `surefire-test-report.xsd`) have in common, which GitLab, Azure and GitHub's actions read too.
//!
//! A regression or a suspicion is a failure; a rule for which the evidence is not enough is an error, so that no reader
//! shows it green.

use super::verdict::{Line, Page, word};
use crate::gate::Finding;

pub fn print(page: &Page) -> String {
    let count = |wanted: &[Finding]| page.lines.iter().filter(|line| wanted.contains(&line.finding)).count();
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"0\" time=\"0\"",
        page.lines.len(),
        count(&[Finding::Regression, Finding::Suspect]),
        count(&[Finding::Open])
    );
    let cases: String = page.lines.iter().map(case).collect();
    let output: Vec<&str> = [page.sight.as_str()].into_iter().chain(page.low_power.as_deref()).collect();
    let notes: Vec<&str> = page.notes.iter().map(String::as_str).collect();
    let output = [&output[..], &notes, &[page.conclusion.as_str()]].concat().join("\n");
    // Surefire has no skipped="" on <testsuites>; readers that look for it there find it in the suite.
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"fireval gate\" {}>\n  <testsuite name=\"{}\" {counts}>\n\
         {cases}    <system-out>{}</system-out>\n  </testsuite>\n</testsuites>\n",
        counts.replace(" skipped=\"0\"", ""),
        escape(&page.title),
        escape(&output)
    )
}

fn case(line: &Line) -> String {
    let name = format!("{}: {}", line.about, line.rule);
    let head = format!("    <testcase classname=\"fireval.gate\" name=\"{}\" time=\"0\"", escape(&name));
    let element = match line.finding {
        Finding::Holds => return format!("{head}/>\n"),
        Finding::Regression | Finding::Suspect => "failure",
        Finding::Open => "error",
    };
    let (kind, text) = (word(line.finding), escape(&line.text));
    format!("{head}>\n      <{element} type=\"{kind}\" message=\"{text}\">{text}</{element}>\n    </testcase>\n")
}

/// Text for an element or an attribute. What XML 1.0 can't hold at all (section 2.2) becomes U+FFFD; line ends are kept in
/// attributes too.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", c as u32)),
            c if (c as u32) < 0x20 || matches!(c, '\u{FFFE}' | '\u{FFFF}') => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::verdict::tests::verdict;

    /// What Jenkins and Surefire both ask of a report: elements in their places, attributes that are required, counts that
    /// are true.
    fn check(text: &str) -> roxmltree::Document<'_> {
        let document = roxmltree::Document::parse(text).unwrap();
        let root = document.root_element();
        assert_eq!(root.tag_name().name(), "testsuites");
        for suite in root.children().filter(roxmltree::Node::is_element) {
            assert_eq!(suite.tag_name().name(), "testsuite");
            let cases: Vec<_> = suite.children().filter(|node| node.has_tag_name("testcase")).collect();
            let with =
                |tag: &str| cases.iter().filter(|case| case.children().any(|node| node.has_tag_name(tag))).count();
            let number = |node: &roxmltree::Node, name: &str| node.attribute(name).unwrap().parse::<usize>().unwrap();
            for (name, count) in [
                ("tests", cases.len()),
                ("failures", with("failure")),
                ("errors", with("error")),
                ("skipped", with("skipped")),
            ] {
                assert_eq!(number(&suite, name), count, "{name}");
            }
            assert_eq!((number(&root, "tests"), number(&root, "failures")), (cases.len(), with("failure")));
            assert!(suite.attribute("name").is_some() && suite.attribute("time").unwrap().parse::<f64>().is_ok());
            let order: Vec<&str> =
                suite.children().filter(|node| node.is_element()).map(|node| node.tag_name().name()).collect();
            let expected = [vec!["testcase"; cases.len()], vec!["system-out"]].concat();
            assert_eq!(order, expected);
            for case in cases {
                assert!(case.attribute("name").is_some() && case.attribute("classname").is_some());
                assert!(case.attribute("time").unwrap().parse::<f64>().is_ok());
                let inside: Vec<_> = case.children().filter(roxmltree::Node::is_element).collect();
                assert!(inside.len() <= 1, "one result a case");
                for result in inside {
                    assert!(matches!(result.tag_name().name(), "failure" | "error"));
                    assert!(result.attribute("type").is_some() && result.attribute("message").is_some());
                }
            }
        }
        document
    }

    #[test]
    fn readers_find_what_they_ask_for() {
        let page = Page::of(&verdict());
        let text = print(&page);
        let document = check(&text);
        let suite = document.descendants().find(|node| node.has_tag_name("testsuite")).unwrap();
        assert_eq!((suite.attribute("failures"), suite.attribute("errors")), (Some("4"), Some("1")));
        assert_eq!(suite.attribute("name").unwrap(), page.title.replace('\u{1}', "\u{FFFD}"), "escaped and back");
        let failure = document.descendants().find(|node| node.has_tag_name("failure")).unwrap();
        assert_eq!(
            (failure.attribute("type"), failure.text()),
            (Some("regression"), Some(page.lines[1].text.as_str()))
        );
        let output = document.descendants().find(|node| node.has_tag_name("system-out")).unwrap();
        assert!(output.text().unwrap().starts_with("with 28659 documents"));
    }

    #[test]
    fn text_can_t_leave_its_place() {
        assert_eq!(escape("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&apos;");
        assert_eq!(escape("a\r\n\u{0}\u{7f}]]>"), "a&#13;&#10;\u{FFFD}\u{7f}]]&gt;");
    }
}
