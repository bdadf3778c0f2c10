//! A report in a real browser: it sorts, filters, drills down and pages, by mouse and keyboard, on a phone and in the dark,
//! asks for nothing, and what documents hold stays text. Screenshots lie in the target's `tmp/report` afterwards.

mod binary;
mod browser;
mod tiny;

use std::path::{Path, PathBuf};

use binary::{Workplace, multiple_choice};
use browser::Browser;
use serde_json::json;

const PROJECT: &str = "[model.base]\npath = \"model\"\n[model.ft]\npath = \"model\"\nadapter = \"tuned\"\n\
                       [eval]\ntasks = [\"arc_challenge\", \"mmlu\", \"evil.toml\"]\nlimit = 12\n[data]\ndir = \"data\"\n";

/// Would leave a mark if it were obeyed, in a script or without one.
const EVIL: &str = "</pre></article><script>window.evil = 1</script><img src=x onerror='window.evil = 2'>";

/// A tiny model, an adapter trained on it, and their runs on two tasks of the leaderboard and one of hostile documents.
fn report() -> (Workplace, PathBuf) {
    let place = Workplace::new();
    tiny::write_trainable(&place.path(""));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    place.run(&["finetune", "recipe.toml"]).done();
    for folder in ["arc_challenge", "mmlu"] {
        std::fs::create_dir_all(place.path("data")).unwrap();
        std::os::unix::fs::symlink(root.join("tasks/data").join(folder), place.path("data").join(folder)).unwrap();
    }
    place.write("evil.toml", &multiple_choice("evil"));
    let row = |question: &str, index: usize| {
        let options = [EVIL.to_owned(), format!("an answer\u{202e} number {index}")];
        json!({"question": question, "options": options, "answer": index % 2}).to_string() + "\n"
    };
    let long = "x".repeat(200_000);
    let rows: String = [EVIL, &long, "plain?"].iter().enumerate().map(|(index, text)| row(text, index)).collect();
    place.write("data/evil/test.jsonl", &rows);
    place.write("fireval.toml", PROJECT);
    let models = ["base", "ft", "scripted:a", "scripted:b"];
    place.run(&[&["compare"], &models[..]].concat()).done();
    place.run(&[&["report"], &models[..], &["-o", "report.html"]].concat()).done();
    let page = place.path("report.html");
    (place, page)
}

/// Numbers at the start of the shown cells of a column.
fn column(browser: &Browser, table: &str, column: usize) -> Vec<f64> {
    let rows = format!("return [...document.querySelectorAll('#{table} tbody tr')].filter((row) => !row.hidden)");
    let cells = browser.run(&format!("{rows}.map((row) => parseFloat(row.cells[{column}].textContent))"));
    cells.as_array().unwrap().iter().filter_map(serde_json::Value::as_f64).collect()
}

fn shown(browser: &Browser, selector: &str) -> u64 {
    let all = format!("return [...document.querySelectorAll({selector:?})]");
    browser.run(&format!("{all}.filter((element) => element.checkVisibility()).length")).as_u64().unwrap()
}

#[test]
fn a_report_works_in_a_browser() {
    let Some(browser) = Browser::start() else { return };
    let (_place, page) = report();
    browser.requests(); // those of the browser itself
    browser.open(&page);
    assert_eq!(browser.run("return document.title"), "base · ft · scripted:a · scripted:b");
    sorting(&browser);
    filtering(&browser);
    drilling_down(&browser);
    flips(&browser);
    keyboard(&browser);
    looks(&browser);
    assert_eq!(browser.run("return typeof window.evil"), "undefined", "what documents hold stays text");
    assert_eq!(browser.console(), Vec::<String>::new());
    let address = format!("file://{}", page.display());
    let requests = browser.requests();
    assert!(requests.contains(&address), "the page itself is seen: {requests:?}");
    let foreign: Vec<&String> =
        requests.iter().filter(|url| !url.starts_with(&address) && !url.starts_with("data:")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

fn sorting(browser: &Browser) {
    let head = "#score-table th:nth-child(5)";
    assert_eq!(browser.run(&format!("return document.querySelector('{head}').textContent")), "Average");
    browser.click(&format!("{head} button"));
    let falling = column(browser, "score-table", 4);
    assert!(falling.len() == 4 && falling.is_sorted_by(|a, b| a >= b), "{falling:?}");
    let said = format!("return document.querySelector('{head}').ariaSort");
    assert_eq!(browser.run(&said), "descending");
    browser.click(&format!("{head} button"));
    assert!(column(browser, "score-table", 4).is_sorted(), "and the other way round");
    assert_eq!(browser.run(&said), "ascending");
    browser.click("#score-table th:nth-child(1) button");
    let names =
        browser.run("return [...document.querySelectorAll('#score-table tbody th')].map((head) => head.textContent)");
    assert_eq!(names, json!(["base", "ft", "scripted:a", "scripted:b"]));
    assert!(browser.run(&said).is_null(), "one column sorts");
}

fn filtering(browser: &Browser) {
    let rows = "#interval-table tbody tr";
    assert_eq!(shown(browser, rows), 16, "four models, three tasks and the average");
    browser.type_into("input[data-filter=interval-table]", "scripted:a");
    assert_eq!(shown(browser, rows), 4);
    assert_eq!(browser.run("return document.querySelector('[data-count=interval-table]').value"), "4 of 16");
    browser.type_into("input[data-filter=interval-table]", &"\u{e003}".repeat(10));
    assert_eq!(shown(browser, rows), 16);
}

fn drilling_down(browser: &Browser) {
    let inner = "#origins details[open] > details[data-drill=mmlu]";
    let subjects = format!("{inner} tbody tr");
    assert_eq!(shown(browser, &subjects), 0);
    browser.click(&format!("{inner} > summary"));
    let all = shown(browser, &subjects);
    assert!(all > 5, "{all} subjects");
    browser.type_into(&format!("{inner} input"), "astro");
    assert_eq!(shown(browser, &subjects), 1);
    browser.click(&format!("{inner} > summary"));
}

fn flips(browser: &Browser) {
    let choose = |pick: &str, value: &str| {
        let script = "const pick = document.querySelector('[data-pick=PICK]'); pick.value = 'VALUE'; \
                      pick.dispatchEvent(new Event('change'))";
        browser.run(&script.replace("PICK", pick).replace("VALUE", value));
    };
    let all = browser.run("return document.querySelectorAll('.flip').length").as_u64().unwrap();
    assert!(all > 20, "{all} flips");
    assert_eq!(shown(browser, ".flip"), 10, "a page");
    browser.click("#flip-more button");
    assert_eq!(shown(browser, ".flip"), 20);
    choose("task", "evil");
    choose("model", "scripted:b");
    let left = shown(browser, ".flip");
    let said = browser.run("return document.getElementById('flip-count').value");
    assert!(left > 0 && left <= 3 && said == format!("{left} of {left} shown"), "{left}, {said}");
    assert_eq!(shown(browser, "#flip-more"), 0);
    assert_eq!(shown(browser, ".flip:not([data-task=evil])"), 0);
    choose("task", "");
    choose("model", "");
    browser.type_into("#flip-text", "<script>window.evil");
    assert!(shown(browser, ".flip") > 0, "hostile text is found as text");
    assert_eq!(browser.run("return document.querySelectorAll('main script, main img').length"), 0);
    browser.click(".flip:not([hidden]) details summary");
    assert!(shown(browser, ".flip:not([hidden]) details pre") > 0);
    browser.type_into("#flip-text", &"\u{e003}".repeat(19));
    assert_eq!(shown(browser, ".flip"), 10);
}

fn keyboard(browser: &Browser) {
    browser.run("document.querySelector('#score-table th:nth-child(2) button').focus()");
    browser.press('\u{e004}'); // Tab
    let focused = "const at = document.activeElement; const style = getComputedStyle(at); \
                   return [at.tagName, at.closest('th').cellIndex, at.matches(':focus-visible'), style.outlineStyle]";
    assert_eq!(browser.run(focused), json!(["BUTTON", 2, true, "solid"]), "the next head, and one sees it");
    browser.press('\u{e007}'); // Enter
    assert_eq!(browser.run("return document.activeElement.closest('th').ariaSort"), "descending");
}

/// Wide and on a phone, by day and in the dark: nothing is wider than the screen, charts fit it, and letters are read on
/// their ground.
fn looks(browser: &Browser) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    std::fs::create_dir_all(&folder).unwrap();
    for (scheme, width) in [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)] {
        browser.prefer(scheme);
        browser.resize(width, 844);
        let seen = browser.run("return document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(seen <= u64::from(width), "{seen} pixels of {width}");
        let (wide, narrow) = (shown(browser, ".wide svg"), shown(browser, ".narrow svg"));
        assert!(if width < 600 { wide == 0 && narrow > 2 } else { narrow == 0 && wide > 2 }, "{wide}, {narrow}");
        for (what, ground, letters) in [
            ("text", "body", "main p"),
            ("quiet text", "#scores", "#scores .quiet"),
            ("a chart", "#differences svg rect", "#differences svg text"),
        ] {
            let contrast = contrast(browser, ground, letters);
            assert!(contrast >= 4.5, "{what}, {scheme}: {contrast}");
        }
        browser.screenshot(&folder.join(format!("{scheme}-{width}.png")));
    }
    eprintln!("screenshots: {}", folder.display());
}

/// The contrast of letters with their ground (WCAG 2.2: 4.5 is enough for text of any size).
fn contrast(browser: &Browser, ground: &str, letters: &str) -> f64 {
    let script = "const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const light = (colour) => { const [r, g, b] = parts(colour).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const colour = (selector, plain) => { const found = document.querySelector(selector);
            const style = getComputedStyle(found); return found.closest('svg') ? style.fill : style[plain]; };
        const [a, b] = [light(colour('GROUND', 'backgroundColor')), light(colour('LETTERS', 'color'))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);";
    browser.run(&script.replace("GROUND", ground).replace("LETTERS", letters)).as_f64().unwrap()
}
