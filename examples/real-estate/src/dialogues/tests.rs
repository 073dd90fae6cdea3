//! What the reader takes, and how it names what it does not.

use super::*;

#[test]
fn the_built_in_dialogues_are_of_the_format() {
    let dialogues = built_in();
    assert!((20..=30).contains(&dialogues.len()), "{} dialogues", dialogues.len());
    assert!(dialogues.iter().all(|dialogue| dialogue.said().count() >= 3), "each person says something");
    assert!(dialogues.iter().flat_map(Dialogue::results).count() >= 30, "there is something to find");
}

#[test]
fn a_message_knows_what_it_answers() {
    let text = r#"[{"dialogue_id": "1", "turns": [
        {"speaker": "USER", "utterance": "hi"},
        {"speaker": "SYSTEM", "utterance": "where?"},
        {"speaker": "user", "utterance": "Napa", "frames": null}]}]"#;
    let dialogues = parse("x", text).unwrap();
    let said: Vec<_> = dialogues[0].said().map(|said| (said.text, said.in_reply_to)).collect();
    assert_eq!(said, [("hi", None), ("Napa", Some("where?"))]);
}

#[test]
fn results_may_hold_numbers_and_booleans() {
    let text = r#"[{"dialogue_id": "1", "turns": [{"speaker": "SYSTEM", "utterance": "", "frames": [
        {"service_results": [{"rent": 3900, "pets_allowed": true, "area": "Napa"}]}]}]}]"#;
    let dialogues = parse("x", text).unwrap();
    let result = dialogues[0].results().next().unwrap();
    assert_eq!((result["rent"].as_str(), result["pets_allowed"].as_str()), ("3900", "true"));
}

#[test]
fn a_repeated_id_is_made_unique() {
    let text = r#"[{"dialogue_id": "1", "turns": []}, {"dialogue_id": "1", "turns": []}]"#;
    let ids: Vec<_> = parse("x", text).unwrap().into_iter().map(|dialogue| dialogue.id).collect();
    assert_eq!(ids, ["1", "1#1"]);
}

#[test]
fn bad_input_is_named_by_file_dialogue_and_field() {
    for (text, message) in [
        ("{}", "x.json: the file: expected an array, found an object"),
        ("[]", "x.json: the file: expected at least one dialogue, found an empty array"),
        ("[3]", "x.json: dialogue [0]: expected an object, found a number"),
        (r#"[{"turns": []}]"#, "x.json: dialogue [0].dialogue_id: expected a text, found nothing"),
        (
            r#"[{"dialogue_id": "7"}]"#,
            "x.json: dialogue \"7\": turns: expected an array of turns, found nothing",
        ),
        (
            r#"[{"dialogue_id": "7", "turns": [{"speaker": "USER", "utterance": 5}]}]"#,
            "x.json: dialogue \"7\": turns[0].utterance: expected a text, found a number",
        ),
        (
            r#"[{"dialogue_id": "7", "turns": [{"speaker": "CAT", "utterance": "miau"}]}]"#,
            "x.json: dialogue \"7\": turns[0].speaker: expected USER or SYSTEM, found \"CAT\"",
        ),
        (
            r#"[{"dialogue_id": "7", "turns": [{"speaker": "USER", "utterance": "", "frames": [{"state": []}]}]}]"#,
            "x.json: dialogue \"7\": turns[0].frames[0].state: expected an object, found an array",
        ),
    ] {
        assert_eq!(parse("x.json", text).unwrap_err().to_string(), message);
    }
    assert_eq!(parse("x.json", "[").unwrap_err().to_string(), "x.json is not JSON");
    assert!(read(Path::new("/nowhere.json")).unwrap_err().to_string().contains("/nowhere.json"));
}
