//! Access to an API server: by a kubeconfig, or by the pod's service account.

use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kwitness_api::text::without_excerpt;
use kwitness_service::configuration;

use super::Settings;
use super::failure::Failure;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A client, and the server's address. The credentials are read anew with each one.
pub(super) async fn client(settings: &Settings) -> Result<(Client, String), Failure> {
    let unusable = |what: &str, error: &dyn std::error::Error| {
        let error = without_excerpt(&error);
        Failure::Configuration(super::failure::text(&format!("{what}: {error}"), 512))
    };
    let mut config = match &settings.kubeconfig {
        Some(file) => {
            let what = format!("kubeconfig {}", file.display());
            // It waits for the writer of a FIFO, and reads what has no end.
            let readable = configuration::read("the kubeconfig", file, "kubernetes.kubeconfig");
            readable.map_err(|error| Failure::Configuration(error.to_string()))?;
            let read = Kubeconfig::read_from(file).map_err(|error| unusable(&what, &error))?;
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            config.map_err(|error| unusable(&what, &error))?
        }
        None => Config::incluster().map_err(|error| unusable("the pod's service account", &error))?,
    };
    // It would run with the daemon's privileges.
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        let why =
            "the kubeconfig runs a program for its credentials; use a token, a token file or a certificate";
        return Err(Failure::Configuration(why.to_owned()));
    }
    config.connect_timeout = Some(CONNECT_LIMIT);
    // What is tried again, and when, is for the watch to decide.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| unusable("the credentials", &error))?;
    Ok((client, server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let settings = Settings { kubeconfig: Some(file), node: "node-1".to_owned() };
        let Err(Failure::Configuration(text)) = client(&settings).await else { panic!("it is a FIFO") };
        assert!(text.contains("kubeconfig: not a regular file; name another file with"), "{text}");
    }

    #[tokio::test]
    async fn an_error_does_not_quote_the_credentials() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        std::fs::write(&file, "kind: Config\nusers: [{name: u, user: {token: SECRET}\nclusters: [\n")
            .unwrap();
        let settings = Settings { kubeconfig: Some(file), node: "node-1".to_owned() };
        let Err(Failure::Configuration(text)) = client(&settings).await else { panic!("it is not YAML") };
        assert!(text.contains("line ") && !text.contains("SECRET"), "{text}");
    }
}
