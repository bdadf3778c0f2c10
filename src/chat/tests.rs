//! Against Jinja itself: `tests/fixtures/chat/render.py` rendered every template there with transformers' settings.

use serde_json::Value;

use super::*;

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/chat/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    let turns = value.as_array().unwrap().iter();
    turns
        .map(|turn| Message::new(turn["role"].as_str().unwrap().parse().unwrap(), turn["content"].as_str().unwrap()))
        .collect()
}

#[test]
fn templates_render_as_jinja_renders_them() {
    let cases: Vec<Value> = serde_json::from_str(&fixture("expected.json")).unwrap();
    assert_eq!(cases.len(), 48);
    for case in &cases {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(&fixture(name), Some("<s>"), Some("</s>")).unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let rendered = template.render(&messages(&case["messages"]), prompt);
        match case["text"].as_str() {
            Some(text) => assert_eq!(rendered.unwrap(), text, "{name}"),
            None => {
                let error = format!("{:#}", rendered.unwrap_err());
                assert!(error.contains(case["error"].as_str().unwrap()), "{name}: {error}");
            }
        }
    }
}

#[test]
fn a_missing_special_token_is_undefined() {
    let template = ChatTemplate::new("{{ bos_token }}{{ 'no' if eos_token is undefined }}", None, None).unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "no");
}

#[test]
fn generation_marks_are_read_over() {
    let source = "{% for m in messages %}\n{%- generation -%}\n {{ m.content }} \n{%- endgeneration %}\n{% endfor %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    assert_eq!(template.render(&[Message::new(Role::User, "hi")], false).unwrap(), "hi");
}

#[test]
fn the_date_of_today_renders() {
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", None, None).unwrap();
    let today = template.render(&[], false).unwrap();
    assert!(today.len() == 10 && today.as_str() > "2024-01-01", "{today}");
    let template = ChatTemplate::new("{{ strftime_now('%q') }}", None, None).unwrap();
    assert!(format!("{:#}", template.render(&[], false).unwrap_err()).contains("`%q`"));
}

#[test]
fn a_template_that_does_not_parse_is_refused_with_its_line() {
    let error = ChatTemplate::new("line one\n{% for x in %}", None, None).map(|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    assert!(ChatTemplate::new("{{ open", None, None).is_err());
    assert!(ChatTemplate::new("{% open", None, None).is_err());
}

#[test]
fn roles_have_one_spelling() {
    for role in [Role::System, Role::User, Role::Assistant] {
        assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
    }
    assert!("robot".parse::<Role>().unwrap_err().to_string().contains("`robot`"));
}
