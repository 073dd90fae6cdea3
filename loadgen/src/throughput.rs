//! .
pub(crate) async fn run(_: &crate::args::Throughput, _: &crate::args::Args) -> anyhow::Result<bool> { Ok(true) }
