//! Which cluster, as whom, and which daemons: kubectl's own flags, and what follows from them and the kubeconfig.
//!
//! Owns the words for a kubeconfig that cannot be used. Asks the API server nothing.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kwitness_api::text::without_excerpt;

use super::failure::Failure;
use crate::exit::Code;
use crate::options::CONNECTION;
use crate::text::duration;

/// Which cluster, which daemons.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Connection {
    /// Show only these nodes
    #[arg(long, global = true, value_delimiter = ',', value_name = "NODE", help_heading = CONNECTION)]
    pub node: Vec<String>,
    /// The kubeconfig file [default: KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, global = true, value_name = "FILE", help_heading = CONNECTION)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: the current one]
    #[arg(long, global = true, value_name = "NAME", help_heading = CONNECTION)]
    pub context: Option<String>,
    /// The kubeconfig's cluster [default: the context's]
    #[arg(long, global = true, value_name = "NAME", help_heading = CONNECTION)]
    pub cluster: Option<String>,
    /// The kubeconfig's user [default: the context's]
    #[arg(long, global = true, value_name = "NAME", help_heading = CONNECTION)]
    pub user: Option<String>,
    /// Impersonate this user
    #[arg(long = "as", global = true, value_name = "USER", help_heading = CONNECTION)]
    pub as_user: Option<String>,
    /// Impersonate this group, too; may be repeated
    #[arg(long, global = true, value_name = "GROUP", help_heading = CONNECTION)]
    pub as_group: Vec<String>,
    /// Wait at most this long for each answer of the API server [default: no limit]
    #[arg(long, global = true, value_name = "DURATION", value_parser = request_timeout, help_heading = CONNECTION)]
    pub request_timeout: Option<RequestTimeout>,
    /// The namespace of the daemons' pods
    #[arg(long, global = true, value_name = "NAMESPACE", default_value = "kwitness", env = "KWITNESS_NAMESPACE", help_heading = CONNECTION)]
    pub kwitness_namespace: String,
    /// The label of the daemons' pods
    #[arg(long, global = true, value_name = "SELECTOR", default_value = "app.kubernetes.io/name=kwitness", help_heading = CONNECTION)]
    pub kwitness_selector: String,
    /// The port of the daemons' API (setting api.listen)
    #[arg(long, global = true, value_name = "PORT", default_value_t = 9769, help_heading = CONNECTION)]
    pub kwitness_port: u16,
}

/// How long an answer of the API server may take; none: as long as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTimeout(pub Option<Duration>);

/// As kubectl reads it: a duration, or a number of seconds; 0 is no limit.
fn request_timeout(text: &str) -> Result<RequestTimeout, String> {
    let limit = text.parse().ok().map(Duration::from_secs).or_else(|| duration(text));
    let limit = limit.ok_or("no duration: \"30s\", \"2m\", or 0 for no limit")?;
    Ok(RequestTimeout(Some(limit).filter(|limit| !limit.is_zero())))
}

impl Connection {
    /// What a client is made of.
    pub async fn config(&self) -> Result<Config, Failure> {
        let Self { kubeconfig, context, cluster, user, as_user, as_group, .. } = self;
        let options =
            KubeConfigOptions { context: context.clone(), cluster: cluster.clone(), user: user.clone() };
        let is_chosen = [context, cluster, user].iter().any(|name| name.is_some());
        let mut config = if kubeconfig.is_some() || is_chosen {
            let file = match kubeconfig {
                Some(path) => Kubeconfig::read_from(path),
                None => Kubeconfig::read(),
            };
            let file = file.map_err(|error| failure(&error))?;
            // The library takes an unknown user for one without credentials.
            if let Some(user) = user
                && file.auth_infos.iter().all(|known| known.name != *user)
            {
                return Err(unknown("user", user));
            }
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| failure(&error))?
        } else {
            Config::infer().await.map_err(|error| {
                let of_file = error.source().and_then(|source| source.downcast_ref());
                of_file.map_or_else(|| unusable(&error), failure)
            })?
        };
        if !as_group.is_empty() && as_user.is_none() {
            return Err(Failure::new(Code::Configuration, "--as-group needs --as: name the user, too"));
        }
        if as_user.is_some() {
            config.auth_info.impersonate.clone_from(as_user);
            config.auth_info.impersonate_groups = (!as_group.is_empty()).then(|| as_group.clone());
        }
        Ok(config)
    }
}

/// What is wrong with a kubeconfig, and what to do.
fn failure(error: &KubeconfigError) -> Failure {
    match error {
        KubeconfigError::CurrentContextNotSet => Failure::new(
            Code::Configuration,
            "the kubeconfig has no current context: choose one with --context (`kubectl config get-contexts` lists them)",
        ),
        KubeconfigError::LoadContext(name) => unknown("context", name),
        KubeconfigError::LoadClusterOfContext(name) => unknown("cluster", name),
        KubeconfigError::ReadConfig(error, path) if error.kind() == io::ErrorKind::NotFound => Failure::new(
            Code::Configuration,
            format!("there is no kubeconfig {}: name one with --kubeconfig or KUBECONFIG", path.display()),
        ),
        KubeconfigError::ReadConfig(error, path) => Failure::new(
            Code::Configuration,
            format!("cannot read the kubeconfig {}: {error}", path.display()),
        ),
        error => unusable(error),
    }
}

fn unusable(error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::Configuration, format!("cannot use the kubeconfig: {}", without_excerpt(&error)))
}

/// A name that the kubeconfig does not have.
fn unknown(what: &str, name: &str) -> Failure {
    let text = format!(
        "the kubeconfig has no {what} \"{name}\": choose another with --{what} (`kubectl config get-{what}s` lists them)"
    );
    Failure::new(Code::Configuration, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters:
- {name: here, cluster: {server: \"https://127.0.0.1:6443\"}}
- {name: there, cluster: {server: \"https://127.0.0.2:6443\"}}
users:
- {name: admin, user: {token: a}}
contexts:
- {name: main, context: {cluster: here, user: admin, namespace: prod}}
- {name: broken, context: {cluster: gone, user: admin}}
";

    async fn config(change: impl FnOnce(&mut Connection)) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        std::fs::write(&path, KUBECONFIG).unwrap();
        let mut connection = Connection { kubeconfig: Some(path), ..Connection::default() };
        change(&mut connection);
        connection.config().await.map_err(|failure| failure.to_string())
    }

    #[tokio::test]
    async fn an_error_does_not_quote_the_credentials() {
        let broken = KUBECONFIG.replace("token: a}}", "token: SECRET}");
        let error = config(|connection| {
            std::fs::write(connection.kubeconfig.as_ref().unwrap(), &broken).unwrap();
        });
        let error = error.await.unwrap_err();
        assert!(error.contains("line ") && !error.contains("SECRET") && !error.contains('\n'), "{error}");
    }

    fn some(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[tokio::test]
    async fn kubectls_flags_choose_and_impersonate() {
        let chosen = config(|connection| {
            connection.context = some("main");
            connection.cluster = some("there");
            connection.as_user = some("jane");
            connection.as_group = vec!["sre".to_owned()];
        });
        let chosen = chosen.await.unwrap();
        assert_eq!(chosen.cluster_url.host(), Some("127.0.0.2"));
        assert_eq!(chosen.default_namespace, "prod");
        assert_eq!(chosen.auth_info.impersonate.as_deref(), Some("jane"));
        assert_eq!(chosen.auth_info.impersonate_groups, Some(vec!["sre".to_owned()]));
        let alone = config(|connection| {
            connection.context = some("main");
            connection.as_group = vec!["sre".to_owned()];
        });
        assert!(alone.await.unwrap_err().contains("--as-group needs --as"));
    }

    #[tokio::test]
    async fn what_the_kubeconfig_does_not_have_is_named_with_what_to_do() {
        let context = config(|connection| connection.context = some("prod")).await.unwrap_err();
        assert_eq!(
            context,
            "the kubeconfig has no context \"prod\": choose another with --context (`kubectl config get-contexts` lists them)"
        );
        let cluster = config(|connection| connection.context = some("broken")).await.unwrap_err();
        assert!(cluster.contains("no cluster \"gone\"") && cluster.contains("--cluster"), "{cluster}");
        let user = config(|connection| {
            connection.context = some("main");
            connection.user = some("nobody");
        });
        assert!(user.await.unwrap_err().contains("no user \"nobody\""));
        let current = config(|_| {}).await.unwrap_err();
        assert!(current.contains("no current context"), "{current}");
        let missing = config(|connection| connection.kubeconfig = Some("/nowhere/config".into()));
        let missing = missing.await.unwrap_err();
        assert!(missing.starts_with("there is no kubeconfig /nowhere/config: "), "{missing}");
    }

    #[test]
    fn a_timeout_is_kubectls() {
        let parsed =
            |text| request_timeout(text).map(|RequestTimeout(limit)| limit.map(|limit| limit.as_secs()));
        assert_eq!(parsed("0"), Ok(None));
        assert_eq!(parsed("0s"), Ok(None));
        assert_eq!(parsed("30"), Ok(Some(30)));
        assert_eq!(parsed("1m30s"), Ok(Some(90)));
        assert!(parsed("soon").is_err() && parsed("").is_err() && parsed("-1s").is_err());
    }
}
