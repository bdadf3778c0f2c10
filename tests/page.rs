//! `fireval report`: what it needs, what it refuses, and that its bytes depend on the runs alone.

mod binary;

use binary::Workplace;

const MODELS: [&str; 2] = ["scripted:a", "scripted:b"];
const FLAGS: [&str; 6] = ["--data", "bundled", "--tasks", "arc_challenge,mmlu", "--limit", "2"];

fn report(place: &Workplace, more: &[&str]) -> binary::Ended {
    place.run(&[&["report"], &MODELS[..], &FLAGS[..], more].concat())
}

fn compare(place: &Workplace, more: &[&str]) -> binary::Ended {
    place.run(&[&["compare"], &MODELS[..], &FLAGS[..], more].concat())
}

#[test]
fn the_same_runs_make_the_same_page_with_the_digits_of_compare() {
    let place = Workplace::new();
    let error = report(&place, &[]).failed();
    assert!(error.contains("not scored yet") && error.contains("fireval eval scripted:a"), "{error}");
    assert!(!place.path("report.html").exists(), "nothing was evaluated and nothing written");
    let csv = compare(&place, &["--format", "csv"]).done();
    assert_eq!(report(&place, &[]).done(), "");
    let page = place.read("report.html");
    report(&place, &[]).done();
    assert_eq!(place.read("report.html"), page, "no clock is read");
    for line in csv.lines().skip(1) {
        let score = line.split(',').nth(7).unwrap();
        assert!(page.contains(&format!(">{score} [")) || page.contains(&format!(">{score}<")), "{line}");
    }
    assert!(page.contains("fireval report scripted:a scripted:b --data bundled --tasks arc_challenge,mmlu --limit 2"));
    assert!(page.contains("<section id=\"flips\">") && page.contains("mmlu: its "), "flips and subjects");
}

#[test]
fn a_page_that_can_t_be_written_fails_before_the_work() {
    let place = Workplace::new();
    place.write("file", "");
    let error = report(&place, &["--output", "file/report.html"]).failed();
    assert!(error.contains("file/report.html"), "{error}");
    std::fs::create_dir(place.path("folder")).unwrap();
    let error = report(&place, &["--output", "folder"]).failed();
    assert!(error.contains("it is a folder"), "the runs are not there either, and this came first: {error}");
}

#[test]
fn published_rows_alone_make_the_chart_of_the_post() {
    let place = Workplace::new();
    let rows = ["published:mistralai/Mixtral-8x7B-v0.1", "published:YeungNLP/firefly-mixtral-8x7b-v0.1"];
    place.run(&[&["report"], &rows[..], &["-o", "pages/post.html"]].concat()).done();
    let page = place.read("pages/post.html");
    assert!(page.contains("+1.92") && page.contains("[+0.59, +3.24]"), "the post's difference");
    assert!(page.contains("<td>46.7 B</td><td>12.9 B</td><td>70.34</td>"), "and its budget");
    assert!(page.contains("meta-llama&#x2f;Llama-2-70b-hf"), "beside the others");
}
