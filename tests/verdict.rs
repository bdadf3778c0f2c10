//! What a comparison says beyond scores: where a difference comes from, which documents flipped, what is refused.

mod binary;

use binary::Workplace;

const MODELS: [&str; 2] = ["scripted:a", "scripted:b"];
const FLAGS: [&str; 6] = ["--data", "bundled", "--tasks", "arc_challenge,mmlu,gsm8k,truthfulqa", "--limit", "6"];

fn compare(place: &Workplace, more: &[&str]) -> binary::Ended {
    place.run(&[&["compare"], &MODELS[..], &FLAGS[..], more].concat())
}

#[test]
fn why_adds_up_to_the_change_of_the_average() {
    let place = Workplace::new();
    let text = compare(&place, &["--why", "--format", "markdown"]).done();
    let change = |text: &str| text.split_whitespace().next().unwrap().parse::<f64>().unwrap();
    let whole = change(text.split("scripted:b: ").nth(1).unwrap());
    let adds: f64 = ["arc_challenge", "mmlu", "gsm8k", "truthfulqa"]
        .iter()
        .map(|task| change(text.split(&format!("| {task} | ")).nth(1).unwrap_or_else(|| panic!("{task}: {text}"))))
        .sum();
    assert!((adds - whole).abs() < 0.021, "four shares rounded to 0.01: {adds} and {whole}\n{text}");
    assert!(text.contains(" subjects with the largest shares") && text.contains("| mmlu/"), "{text}");
    assert!(text.contains("documents scored differently by scripted:a and scripted:b"), "{text}");
    let next = "flips mmlu scripted:a scripted:b --documents 6 --data bundled --skip 2";
    assert!(text.contains(&format!("more: fireval {next}\n")), "{text}");
    let page = place.run(&next.split(' ').collect::<Vec<&str>>()).done();
    assert!(page.contains("\n3. "), "it works as printed: {page}");
    let error = compare(&place, &["--why", "--format", "csv"]).failed();
    assert!(error.contains("--why prints with --format table or markdown"), "{error}");
}

#[test]
fn flips_are_paged_and_none_is_missing() {
    let place = Workplace::new();
    let csv = compare(&place, &["--format", "csv"]).done();
    let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let mmlu: Vec<&str> =
        csv.lines().find(|line| line.contains("scripted:b,") && line.contains(",mmlu,")).unwrap().split(',').collect();
    let number =
        |column: &str| -> usize { mmlu[head.iter().position(|name| *name == column).unwrap()].parse().unwrap() };
    let flipped = number("gained") + number("lost");
    assert!(flipped > 5, "{flipped} flips of two models that answer at random");
    let page = |skip: usize| {
        let skip = skip.to_string();
        let args =
            ["flips", "mmlu", MODELS[0], MODELS[1], "--data", "bundled", "--documents", "6", "--limit", "5", "--skip"];
        place.run(&[&args[..], &[skip.as_str()]].concat()).done()
    };
    let count = |text: &str| text.lines().filter(|line| line.starts_with("  right: ")).count();
    let pages: Vec<String> = (0..flipped.div_ceil(5)).map(|index| page(index * 5)).collect();
    assert_eq!(pages.iter().map(|text| count(text)).sum::<usize>(), flipped);
    assert!(pages[0].contains(&format!("mmlu: {flipped} documents scored differently")), "{}", pages[0]);
    assert!(!pages.last().unwrap().contains("more: fireval flips"));
    // Exactly one of both picked the right answer.
    for flip in pages[0].split("\n\n").filter(|flip| flip.contains("  right: ")) {
        let line = |start: &str| {
            flip.lines().find_map(|line| line.trim().strip_prefix(start)).unwrap_or_else(|| panic!("{flip}"))
        };
        let right = line("right: ");
        let picks = [line("scripted:a: "), line("scripted:b: ")];
        assert_eq!(picks.iter().filter(|pick| **pick == right).count(), 1, "{flip}");
    }
    let args = ["flips", "gsm8k", MODELS[0], MODELS[1], "--data", "bundled", "--documents", "9"];
    let error = place.run(&args).failed();
    assert!(error.contains("not scored yet"), "flips evaluates nothing: {error}");
    let next = error.split('`').nth(1).unwrap().strip_prefix("fireval ").unwrap();
    assert_eq!(next, "eval scripted:a --tasks gsm8k --limit 9 --data bundled");
    place.run(&next.split(' ').collect::<Vec<&str>>()).done();
    assert!(place.run(&args).failed().contains("`fireval eval scripted:b --tasks gsm8k"), "which was one of both");
}

#[test]
fn a_model_beside_itself_has_no_difference() {
    let place = Workplace::new();
    let args = ["compare", "scripted:a", "scripted:a", "--data", "bundled", "--tasks", "arc_challenge,winogrande"];
    let csv = place.run(&[&args[..], &["--limit", "30", "--format", "csv"]].concat()).done();
    let last = csv.lines().last().unwrap();
    assert!(last.contains(",average,mean,60,") && last.contains(",0.00,0.00,"), "{csv}");
    let arc = csv.lines().nth(4).unwrap();
    assert!(arc.contains(",1.0000,1.0000,0,0,yes"), "p, Holm, gained, lost, within noise: {csv}");
}

#[test]
fn what_was_asked_otherwise_is_refused() {
    let place = Workplace::new();
    let text = compare(&place, &[]).done();
    assert!(text.contains("95 % intervals · p of no difference"), "{text}");
    let published = ["compare", "scripted:a", "published:mistralai/Mixtral-8x7B-v0.1", "--protocol", "lm-eval-latest"];
    let error =
        place.run(&[&published[..], &["--data", "bundled", "--tasks", "gsm8k", "--limit", "2"]].concat()).failed();
    assert!(error.contains("not the same questions"), "{error}");
}
