//! What the modelled broker must refuse, forget and give back, as the real one does.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one thing that was heard")]

use super::*;
use crate::net::Who;

const HOME: Actor = Actor { who: Who::Replica(0), life: 0 };
const FORMER: Actor = Actor { who: Who::Replica(1), life: 0 };

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + ms)
}

fn publish(
    broker: &mut Broker,
    ms: u64,
    subject: &str,
    id: Option<&str>,
    expected: Option<Expected>,
) -> Answer {
    let (subject, id) = (subject.to_owned(), id.map(str::to_owned));
    broker.handle(at(ms), HOME, Op::Publish { token: 1, subject, id, expected, payload: Bytes::from("x") });
    match broker.take().heard.into_iter().find_map(|(_, heard)| match heard {
        Heard::Answer { answer, .. } => Some(answer),
        _ => None,
    }) {
        Some(answer) => answer,
        None => panic!("a publish is answered"),
    }
}

fn lane_consumer(broker: &mut Broker, name: &str) -> Answer {
    let config = ConsumerConfig {
        name: name.to_owned(),
        filter: "mesh.in.p2.bot.*".to_owned(),
        ack_wait: Duration::from_secs(3),
        ack_pending_max: 10,
    };
    broker.handle(at(0), HOME, Op::MakeConsumer { token: 1, stream: "MESH_IN_P2".to_owned(), config });
    match broker.take().heard.pop() {
        Some((_, Heard::Answer { answer, .. })) => answer,
        other => panic!("{other:?}"),
    }
}

fn pull(broker: &mut Broker, ms: u64, by: Actor, consumer: &str) -> Vec<Delivery> {
    let (stream, consumer) = ("MESH_IN_P2".to_owned(), consumer.to_owned());
    broker.handle(at(ms), by, Op::Pull { key: 1, stream, consumer, messages: 5 });
    deliveries(broker)
}

fn deliveries(broker: &mut Broker) -> Vec<Delivery> {
    let heard = broker.take().heard.into_iter();
    heard
        .filter_map(|(_, heard)| match heard {
            Heard::Message { message, .. } => Some(message),
            _ => None,
        })
        .collect()
}

#[test]
fn a_fence_refuses_who_expects_an_older_one() {
    let mut broker = Broker::new();
    let Answer::Stored { sequence, .. } = publish(&mut broker, 0, "mesh.fence.p2.7", None, None) else {
        panic!()
    };
    let fence = |sequence| Some(Expected { subject: "mesh.fence.p2.7".to_owned(), sequence });
    let stored = publish(&mut broker, 1, "mesh.out.p2.desk", Some("a"), fence(sequence));
    assert!(matches!(stored, Answer::Stored { duplicate: false, .. }));
    publish(&mut broker, 2, "mesh.fence.p2.7", None, None);
    assert_eq!(publish(&mut broker, 3, "mesh.out.p2.desk", Some("b"), fence(sequence)), Answer::Fenced);
}

#[test]
fn a_message_id_is_known_until_a_restart_finds_its_message_gone() {
    let mut broker = Broker::new();
    lane_consumer(&mut broker, "bot@1");
    let subject = "mesh.in.p2.bot._";
    publish(&mut broker, 0, subject, Some("kept"), None);
    publish(&mut broker, 0, subject, Some("gone"), None);
    let second = pull(&mut broker, 1, HOME, "bot@1").pop().unwrap();
    broker.handle(at(2), HOME, Op::Ack { ack: second.ack });
    let duplicate = |answer: &Answer| matches!(answer, Answer::Stored { duplicate: true, .. });
    assert!(duplicate(&publish(&mut broker, 3, subject, Some("gone"), None)), "removed and still known");
    broker.restart(at(4));
    broker.take();
    assert!(duplicate(&publish(&mut broker, 5, subject, Some("kept"), None)));
    assert!(!duplicate(&publish(&mut broker, 5, subject, Some("gone"), None)));
    let over = streams::DUPLICATE_WINDOW.as_millis() as u64 + 1_000;
    assert!(!duplicate(&publish(&mut broker, over, subject, Some("kept"), None)), "the window is over");
}

#[test]
fn under_the_same_name_a_former_holder_takes_and_drops_the_new_ones_messages() {
    let mut broker = Broker::new();
    lane_consumer(&mut broker, "bot");
    publish(&mut broker, 0, "mesh.in.p2.bot._", None, None);
    let held = pull(&mut broker, 1, FORMER, "bot").pop().unwrap();
    let stream = "MESH_IN_P2".to_owned();
    broker.handle(at(2), HOME, Op::DeleteConsumer { token: 1, stream, name: "bot".to_owned() });
    lane_consumer(&mut broker, "bot");
    assert_eq!(pull(&mut broker, 3, HOME, "bot").len(), 1, "what was held comes back at once");
    broker.handle(at(4), FORMER, Op::Ack { ack: held.ack });
    assert!(
        broker.look("MESH_IN_P2").is_empty(),
        "the former holder's acknowledgement met the new one's message"
    );
}

#[test]
fn under_another_name_a_former_holders_acknowledgement_meets_nothing() {
    let mut broker = Broker::new();
    lane_consumer(&mut broker, "bot@1");
    publish(&mut broker, 0, "mesh.in.p2.bot._", None, None);
    let held = pull(&mut broker, 1, FORMER, "bot@1").pop().unwrap();
    let refused = lane_consumer(&mut broker, "bot@2");
    assert!(matches!(refused, Answer::Refused(_)), "two consumers of one filter cannot be in a work queue");
    let stream = "MESH_IN_P2".to_owned();
    broker.handle(at(2), HOME, Op::DeleteConsumer { token: 1, stream, name: "bot@1".to_owned() });
    lane_consumer(&mut broker, "bot@2");
    broker.handle(at(3), FORMER, Op::Ack { ack: held.ack });
    assert_eq!(broker.look("MESH_IN_P2").len(), 1);
    assert_eq!(pull(&mut broker, 4, HOME, "bot@2").len(), 1);
}

#[test]
fn what_is_held_in_silence_or_given_back_comes_again() {
    let mut broker = Broker::new();
    lane_consumer(&mut broker, "bot@1");
    publish(&mut broker, 0, "mesh.in.p2.bot._", None, None);
    broker.handle(
        at(0),
        HOME,
        Op::Pull { key: 1, stream: "MESH_IN_P2".to_owned(), consumer: "bot@1".to_owned(), messages: 5 },
    );
    let mut timers = broker.take().timers;
    timers.retain(|(due, _)| *due <= at(10_000));
    let (due, timer) = timers.pop().unwrap();
    assert_eq!((due, timers.len()), (at(3_000), 0), "the message comes again when its time is over");
    broker.wake(at(2_000), timer.clone());
    assert_eq!(deliveries(&mut broker).len(), 0, "it is too early");
    broker.wake(due, timer);
    let again = deliveries(&mut broker).pop().unwrap();
    assert_eq!(again.delivered, 2);
}

#[test]
fn a_full_subject_refuses_and_the_others_go_on() {
    let mut broker = Broker::new();
    for _ in 0..streams::LANE_MESSAGES_MAX {
        publish(&mut broker, 0, "mesh.in.p2.bot.desk", None, None);
    }
    assert_eq!(publish(&mut broker, 0, "mesh.in.p2.bot.desk", None, None), Answer::Full);
    assert!(matches!(publish(&mut broker, 0, "mesh.in.p2.bot.crm", None, None), Answer::Stored { .. }));
}

#[test]
fn an_entry_is_set_only_on_the_revision_that_is_expected() {
    let mut broker = Broker::new();
    let mut put = |revision| {
        let (bucket, key) = (streams::OWNERS_BUCKET, "7".to_owned());
        broker.handle(at(0), HOME, Op::Put { token: 1, bucket, key, value: Bytes::from("x"), revision });
        match broker.take().heard.pop() {
            Some((_, Heard::Answer { answer, .. })) => answer,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(put(Some(0)), Answer::Done { revision: 1 });
    assert!(matches!(put(Some(0)), Answer::Refused(_)));
    assert_eq!(put(Some(1)), Answer::Done { revision: 2 });
}
