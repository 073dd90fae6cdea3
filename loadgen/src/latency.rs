//! .
pub(crate) async fn run(_: &crate::args::Latency, _: &crate::args::Args) -> anyhow::Result<bool> { Ok(true) }
