//! Control messages between neighbours of two versions: what an older peer says is read, what it does not know is left out, and
//! what a newer one gives as a reason stops nothing.

use governance::{Kind, Reason};
use protocol::control::{DeadLetter, OpenAnswer, OpenQuestion, Operation};

#[test]
fn what_an_older_peer_says_is_read_and_what_it_does_not_know_is_left_out() {
    let question: OpenQuestion = serde_json::from_str(r#"{"runs": [["d-1-1-0", 1]]}"#).unwrap();
    assert_eq!((question.delivered, question.runner.as_str(), question.alone), (2, "", false));
    let answer = OpenAnswer { open: vec![vec![true]], alone: Vec::new() };
    assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"open":[[true]]}"#);
    let older = r#"{"id": "d-1-1-0", "source": "a", "target": "b", "capability": "c", "priority": "P2", "attempts": 5,
        "reason": "handler_failed", "error": "no", "at": "2026-02-14T09:23:15.482Z", "payload_hex": ""}"#;
    let letter: DeadLetter = serde_json::from_str(older).unwrap();
    assert_eq!((letter.kind, letter.root.as_str()), (Kind::Event, ""));
    let newer: DeadLetter = serde_json::from_str(&older.replace("handler_failed", "of_next_year")).unwrap();
    assert!(!Reason::ALL.contains(&newer.reason), "{}", newer.reason);
    let operation = Operation { agent: "a".into(), ..Operation::default() };
    assert!(!serde_json::to_string(&operation).unwrap().contains("letter"));
}
