use proptest::prelude::*;

use super::*;

fn error(text: &str) -> String {
    match Document::parse("devcontainer.json", text.as_bytes()) {
        Ok(document) => document.config().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn comments_trailing_commas_and_a_byte_order_mark() {
    let text = "\u{feff}// first\n{ /* a */ \"image\": \"debian\", \"runArgs\": [\"-it\",], }\n";
    let config = Document::parse("d", text.as_bytes()).unwrap().config().unwrap();
    assert_eq!(config.own.image.as_deref(), Some("debian"));
    assert_eq!(config.own.run_args, ["-it"]);
}

#[test]
fn syntax_errors_say_where() {
    for (text, expected) in [
        ("", "devcontainer.json:1:1: the file is empty: a JSON object is expected"),
        ("// only a comment", "devcontainer.json:1:1: the file is empty: a JSON object is expected"),
        ("\n [1]", "devcontainer.json:2:2: a JSON object is expected"),
        ("{\n  \"a\": 1\n  \"b\": 2\n}", "devcontainer.json:3:3: expected comma"),
        ("{ \"image\": 'x' }", "devcontainer.json:1:12: single-quoted strings are not allowed"),
        ("{ \"image\": x }", "devcontainer.json:1:12: unexpected word"),
        ("{ \"ä\": 1, \"image\": ", "devcontainer.json:1:"),
        ("{ \"image\": \"x\" } {", "devcontainer.json:1:18: text cannot contain more than one JSON value"),
    ] {
        let message = error(text);
        assert!(message.starts_with(expected), "{text:?} gave {message:?}");
    }
    let message = Document::parse("d", b"{\n\"a\": \"\xff\"}").unwrap_err().to_string();
    assert_eq!(message, "d:2:7: the text is not UTF-8 here");
}

#[test]
fn wrong_types_name_the_property_and_its_place() {
    for (text, expected) in [
        ("{\n \"image\": 5 }", "devcontainer.json:2:11: image: invalid type: integer `5`, expected a string"),
        ("{ \"build\": { \"args\": { \"A\": [] } } }", "devcontainer.json:1:29: build.args.A: "),
        ("{ \"runArgs\": [\"a\", 1] }", "devcontainer.json:1:20: runArgs[1]: "),
        ("{ \"runArgs\": \"a\" }", "devcontainer.json:1:14: runArgs: "),
        ("{ \"privileged\": \"yes\" }", "devcontainer.json:1:17: privileged: "),
        ("{ \"mounts\": [\"type=tmpfs,target=/a\", {\"type\": \"bind\"}] }", "devcontainer.json:1:38: mounts[1]: "),
        ("{ \"postCreateCommand\": 5 }", "devcontainer.json:1:24: postCreateCommand: expected a string"),
        ("{ \"postCreateCommand\": {\"a\": {}} }", "devcontainer.json:1:24: postCreateCommand: expected a string"),
        ("{ \"waitFor\": \"never\" }", "devcontainer.json:1:14: waitFor: unknown variant `never`"),
        ("{ \"userEnvProbe\": \"maybe\" }", "devcontainer.json:1:19: userEnvProbe: unknown variant `maybe`"),
        ("{ \"remoteEnv\": {\"A\": 1} }", "devcontainer.json:1:22: remoteEnv.A: "),
    ] {
        let message = error(text);
        assert!(message.starts_with(expected), "{text} gave {message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn unknown_properties_are_tolerated() {
    let text = br#"{ "image": "x", "somethingNew": { "a": [1, null] }, "customizations": { "vscode": {} } }"#;
    assert!(Document::parse("d", text).unwrap().config().is_ok());
}

proptest! {
    #[test]
    fn any_bytes_parse_or_fail_in_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = Document::parse("d", &bytes) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn almost_json_parses_or_fails(text in r#"([{}\[\],:"]|"[a-z\\u0-9]{0,6}"|//|/\*|\*/|\n|[0-9.eE+-]{1,5}|true|null){0,40}"#) {
        if let Ok(document) = Document::parse("d", text.as_bytes()) {
            let _ = document.config();
        }
    }

    #[test]
    fn a_value_is_found_at_its_place(blank in "[ \n]{0,30}", name in "[a-z]{1,8}") {
        let text = format!("{{{blank}\"{name}\":{blank}7}}");
        let document = Document::parse("d", text.as_bytes()).unwrap();
        let place = document.place(&name);
        let line = text.split('\n').nth(place.line - 1).unwrap();
        prop_assert_eq!(&line[place.column - 1..place.column], "7");
    }
}
