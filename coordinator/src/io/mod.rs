//! Everything that does I/O for the home: pulling, publishing, the audit ledger, replies, alerts. Has no opinion.

pub(crate) mod alerts;
pub(crate) mod ledger;
pub(crate) mod outbox;
pub(crate) mod pulls;
pub(crate) mod replies;
pub(crate) mod side;
