//! Core messages: handed to whoever listens at that moment, at most once. Owns who listens where.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Broker, Heard};
use crate::net::Actor;

/// Where the answer to a question goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    /// Who asked.
    pub to: Actor,
    /// Under which number.
    pub token: u64,
}

/// Who listens to which beginnings of subjects.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(BTreeMap<Actor, Vec<String>>);

impl Subscriptions {
    pub(super) fn add(&mut self, actor: Actor, prefixes: &[String]) {
        self.0.insert(actor, prefixes.to_vec());
    }

    pub(super) fn remove(&mut self, actor: Actor) {
        self.0.remove(&actor);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn actors(&self) -> impl Iterator<Item = Actor> + '_ {
        self.0.keys().copied()
    }

    fn listeners(&self, subject: &str) -> impl Iterator<Item = Actor> {
        self.0
            .iter()
            .filter(move |(_, prefixes)| prefixes.iter().any(|p| matches(p, subject)))
            .map(|(actor, _)| *actor)
    }
}

/// A beginning that ends in a dot stands for everything below it, another one for itself.
fn matches(prefix: &str, subject: &str) -> bool {
    if prefix.ends_with('.') { subject.starts_with(prefix) } else { subject == prefix }
}

impl Broker {
    /// Hands a message to all who listen; false where nobody does.
    pub(super) fn tell(&mut self, subject: &str, payload: &Bytes, reply: Option<ReplyTo>) -> bool {
        let before = self.out.heard.len();
        let heard = self.subscriptions.listeners(subject).map(|actor| {
            (actor, Heard::Told { subject: subject.to_owned(), payload: payload.clone(), reply })
        });
        self.out.heard.extend(heard);
        self.out.heard.len() > before
    }
}
