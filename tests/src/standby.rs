//! A second daemon at the socket of one that runs, which waits for its end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agent::Agent;
use crate::process::Managed;
use crate::scrape::get;

/// A guest without hardware virtualization starts programs slowly.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Standby {
    process: Managed,
    /// Where it serves its probes and metrics.
    pub http: PathBuf,
}

impl Standby {
    /// Starts it with the settings of that daemon, and waits until it is ready; `name` is one that no other has had.
    pub async fn start(agent: &Agent, name: &str) -> Result<Self> {
        let http = agent.socket().with_file_name(format!("{name}.http"));
        let listen = format!("--set=http.listen=unix://{}", http.display());
        let mut process = agent.spawn_beside(name, &["--standby", &listen])?;
        let ready = async || {
            let answer = get(&http, "GET", "/readyz");
            Ok(answer
                .is_ok_and(|(status, body)| status.ends_with(" 200 OK") && body.contains("standby"))
                .then_some(()))
        };
        process.wait_for("the standby to be ready", LIMIT, ready).await?;
        Ok(Self { process, http })
    }

    pub fn process(&mut self) -> &mut Managed {
        &mut self.process
    }

    /// Ends the daemon with SIGTERM, and waits until this one is ready in its place.
    pub async fn take_over(self, agent: &mut Agent) -> Result<()> {
        let mut last = agent.replace_process(self.process);
        last.end(LIMIT)?;
        agent.wait_ready().await?;
        let (status, body) = get(&self.http, "GET", "/readyz").context("ask the new daemon")?;
        ensure!(status.ends_with(" 200 OK") && !body.contains("standby"), "{status}: {body}");
        Ok(())
    }
}
