//! The daemon: starts probes, engine, resolver, hub and API, and stops them when a signal comes.
//!
//! Owns the order of things. The probes are attached first and the tree is scanned after that, so that what starts in
//! between is seen twice and reported once; the API answers once the scan is done.

mod log;
mod succession;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use kwitness_core::journal::Epoch;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{KernelTime, Observation};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{self, Admission, DaemonInfo, Loopback, Service};
use crate::cgroupfs::{CgroupFs, LimitReader, Roots, Watch};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::cri;
use crate::cri_events::{self, RuntimeEvents};
use crate::engine::{
    Engine, Handle, History, JudgeQueue, Memory, Outside, Parts, Place, Refusal, Resumes, Scans, UnreadPins,
};
use crate::hub::{Capacity, Hub, Writer};
use crate::kubernetes::Kubernetes;
#[cfg(feature = "kubernetes")]
use crate::kubernetes::Settings as WatchSettings;
use crate::metrics::{Metrics, Sources, Stage};
use crate::namespaces;
use crate::pressure::{self, MemoryFiles, Sampling};
use crate::privileges::Setup;
use crate::probe::capability::LIMIT_WRITES;
use crate::probe::{
    Advised, Attached, Capabilities, Loaded, SetId, Settings, check_loads, check_process, error_chain,
};
use crate::reload::Reload;
use crate::verify::Verifier;
use kwitness_service::http::{HttpCounters, HttpLimits, HttpServer};
use kwitness_service::{
    Binding, ConnectionCounters, InstanceLock, Limits, Listener, Signal, Signals, Socket, notify_ready,
};
use succession::{Turn, stop_signal, take_turn};
pub use succession::{Unpin, uninstall};

/// Answers of the runtime on their way to the engine.
const ANSWERS: usize = 256;

/// What a run of the daemon does besides its configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the core observes is written to that file.
    pub record: Option<PathBuf>,
    /// When it removes what it keeps for the next daemon.
    pub unpin: Unpin,
    /// While another daemon runs at the socket, it waits for that one's end.
    pub standby: bool,
    /// What SIGHUP applies.
    pub reload: Reload,
}

/// Runs the daemon until SIGTERM or SIGINT; `setup` loads and attaches the probes.
///
/// # Errors
/// What keeps it from starting or going on; each with what to do.
pub async fn run(config: Config, options: Options, setup: Setup) -> anyhow::Result<()> {
    // Before anything that takes long: until then, every signal ends the process, SIGHUP and SIGUSR1 as well.
    let mut signals = Signals::handle()?;
    let unpin = options.unpin;
    if unpin != Unpin::Never {
        // Signalled to stop while it starts, it does so once it knows what to remove.
        signals.suspend_deadline();
    }
    // What is there if it could not start may be another daemon's.
    let Some(lock) = watch_node(&config, options, &mut signals, setup).await? else { return Ok(()) };
    if unpin != Unpin::Never {
        signals.suspend_deadline();
    }
    succession::end(&config, lock, unpin)
}

/// The lock, if the process was this node's daemon, or was to be the next one: what is left is its to decide on.
async fn watch_node(
    config: &Config,
    options: Options,
    signals: &mut Signals,
    setup: Setup,
) -> anyhow::Result<Option<InstanceLock>> {
    let Options { record, reload, standby, unpin: _ } = options;
    // Before anything is made: a process without privileges learns that, and not what else it may not do. Neither is a standby that
    // could never run to be waited for.
    setup.run(check_process)?.map_err(Advised::from)?;
    // Before the probes, which take some hundred descriptors.
    let limits = Limits::for_descriptors(kwitness_service::descriptors::raise_limit(), 1);
    Socket::make_directory(&config.socket)?;
    let mut settings = config.probe.clone();
    settings.lock_file = Some(lock_file(&config.socket));
    settings.pins = config.pin.then(|| config.pin_directory.clone());
    let http = Arc::<HttpCounters>::default();
    let metrics = Arc::new(Metrics::new(config.metrics_labels, Arc::clone(&http)));
    let pages = |address| {
        let limits = HttpLimits::with_connections(config.http_connections);
        // The daemon whose end a standby waits for may have the same address.
        let binding = if standby { Binding::inherited } else { Binding::new };
        HttpServer::start(binding("http.listen"), address, limits, Arc::clone(&metrics), Arc::clone(&http))
    };
    // It answers from the start on, so that probes say what is being waited for.
    let http_server = config.http.as_ref().map(pages).transpose()?;
    let cgroups = CgroupFs::find(&config.subtree)?;
    namespaces::configure(&mut settings, &cgroups, config.any_pid_namespace)?;
    pressure::configure(&mut settings, config, &cgroups);
    let rehearse = || -> anyhow::Result<()> {
        let settings = settings.clone();
        setup.run(move || check_loads(&settings))?.map_err(Advised::from)?;
        Ok(())
    };
    let reload_due = Notify::new();
    let stop = stop_signal(signals, &reload_due);
    let lock = match take_turn(&config.socket, standby, rehearse, stop, &metrics).await? {
        Turn::Taken(lock) => lock,
        Turn::Stopped(lock) => return Ok(lock),
    };
    if let Some(server) = &http_server {
        server.binding().take_over();
    }
    let clock = Clock::read();
    let began = Instant::now();
    let Probes { attached, mut capabilities, watch, until_loaded, until_attached } = {
        let (settings, cgroups) = (settings.clone(), cgroups.clone());
        setup.finish(move || Probes::attach(&settings, &cgroups, began))??
    };
    let listener = Listener::new(Socket::listen(&config.socket)?, limits)?;
    let loopback = config.api_listen.map(Loopback::new);
    let bindings: Vec<_> = http_server
        .as_ref()
        .map(HttpServer::binding)
        .into_iter()
        .chain(loopback.as_ref().map(Loopback::binding))
        .collect();
    pressure::note_sampling(&mut capabilities, config, &cgroups);
    log::capabilities(&capabilities);
    log::pins(&attached);
    let unread_pins = UnreadPins::new(config.pin_directory.clone());

    let stop = CancellationToken::new();
    let capacity = Capacity {
        items: NonZeroUsize::new(config.replay_window).context("no replay window")?,
        bytes: config.replay_bytes,
    };
    let place = ledger(config);
    let resumes = attached.pinned.is_ok().then(|| Resumes {
        unrecorded: attached.unrecorded(&capabilities),
        same_maps: attached.counts_go_on(),
    });
    let probe = attached.run().map_err(Advised::from)?;
    let Past { hub, writer, memory, resumes, place } = match resumes {
        Some(resumes) => Past::read(place, capacity, resumes, &probe.sets()),
        None => Past::none(place, capacity),
    };
    let (answer, answers) = mpsc::channel(ANSWERS);
    let bounds = bounds(settings.tracked_capacity);
    let reader = LimitReader::start(cgroups.clone(), bounds.cgroups, answer.clone())
        .context("cannot start the reader of limit files")?;
    metrics.reached(Stage::Scanning);
    let watching = watch.map(|watch| watch.run(probe.tracker(), answer.clone())).transpose();
    let watching = watching.context("cannot start the reader of limit writes")?;
    let (handle, requests) = Handle::new();
    let sampling = sample_memory(config, &cgroups, &capabilities, &handle, &answer)?;
    let (resolver, resolving) = cri::start(config.runtime.clone(), answer);
    let verdicts = JudgeQueue::default();
    let roots = Roots::new(settings.roots);
    let outside = Outside::new(cgroups.clone(), roots.clone());
    let scans = Scans::new(cgroups.clone(), roots, probe.tracker(), bounds.cgroups);
    let reported = memory.reported.clone();
    let parts = Parts {
        probe,
        memory,
        resumes,
        place,
        scans,
        outside,
        unread_pins,
        writer,
        resolver: resolver.clone(),
        reader,
        watch: watching,
        verdicts: verdicts.clone(),
        sampling,
        answers,
        requests,
    };
    let engine = Engine::new(parts, record.as_deref())?;
    let connections = listener.counters();
    let reports = handle.clone();
    let capabilities_shown = capabilities.clone();
    let info = DaemonInfo {
        started: clock.now(),
        config_file: config.file.clone(),
        settings: config.settings.clone(),
        socket: config.socket.clone(),
        node_name: config.node_name.clone().unwrap_or_else(host_name),
        capabilities,
        subtree: config.subtree.to_string(),
        bindings: bindings.clone(),
    };
    let (kubernetes, _watching) = watch_kubernetes(config, &info.node_name, info.started).unzip();
    let kubelet = config.kubelet_directory.clone();
    let verifier = Verifier::new(cgroups, handle.clone(), verdicts, resolver.clone(), kubelet, reported);
    let verifier = verifier.with_kubernetes(kubernetes);
    let following = tokio::spawn(verifier.clone().follow());
    let (events, worker) = cri_events::start(resolver.clone(), hub.clone());
    let runtime_events = RuntimeEvents::new(events.clone(), stop.clone());
    let admission = Admission::new(config.max_calls);
    metrics.connect(Sources {
        hub: hub.clone(),
        engine: handle.clone(),
        resolver: resolver.clone(),
        verifier: verifier.clone(),
        cri_events: events.clone(),
        admission: admission.clone(),
        connections: Arc::clone(&connections),
        capabilities: capabilities_shown,
        tracked_capacity: settings.tracked_capacity.get(),
        bindings,
    });
    let service = Service::new(hub, handle, resolver, verifier, info, admission, stop.clone());
    let service = service.with_cri_events(events);
    let (health, serving) = api::serve(listener, loopback, service, runtime_events, stop.clone()).await?;
    let (ready, is_ready) = oneshot::channel();

    let resolving = tokio::spawn(resolving);
    let worker = tokio::spawn(worker);
    let giving_back = tokio::spawn(kwitness_service::memory::give_back_after_peaks());
    let mut running = tokio::spawn(engine.run(ready, stop.clone()));
    let mut serving = tokio::spawn(serving);
    let starting = async {
        if is_ready.await.is_ok() {
            health.ready().await;
            metrics.reached(Stage::Ready);
            kwitness_service::memory::give_back();
            let until_ready = began.elapsed();
            tracing::info!(
                socket = %config.socket.display(),
                took_ms = until_ready.as_millis(),
                load_ms = until_loaded.as_millis(),
                attach_ms = (until_attached - until_loaded).as_millis(),
                scan_ms = (until_ready - until_attached).as_millis(),
                "ready"
            );
            notify_ready();
        }
        std::future::pending::<()>().await;
    };
    signals.resume_deadline();
    let ended = tokio::select! {
        ended = &mut running => Some(ended.context("the engine panicked").flatten()),
        ended = &mut serving => Some(ended.context("the API panicked").flatten()),
        () = until_stop(signals, &reports, &connections, reload, &reload_due) => None,
        () = starting => None,
    };
    metrics.reached(Stage::Stopping);
    tracing::info!("stopping");
    stop.cancel();
    resolving.abort();
    following.abort();
    worker.abort();
    giving_back.abort();
    // Each ends by itself now; whichever ended before is not polled again.
    if !running.is_finished() {
        running.await.context("the engine panicked")??;
    }
    if !serving.is_finished() {
        serving.await.context("the API panicked")??;
    }
    ended.unwrap_or(Ok(())).map(|()| Some(lock))
}

/// What the setup leaves.
struct Probes {
    attached: Attached,
    capabilities: Capabilities,
    watch: Option<Watch>,
    until_loaded: Duration,
    until_attached: Duration,
}

impl Probes {
    /// Does what takes the privileges of the setup; `began` is when it was requested.
    fn attach(settings: &Settings, cgroups: &CgroupFs, began: Instant) -> Result<Self, Advised> {
        let loaded = Loaded::load(settings)?;
        let until_loaded = began.elapsed();
        let attached = loaded.attach()?;
        let until_attached = began.elapsed();
        let mut capabilities = attached.capabilities().clone();
        let watch = watch_limits(&mut capabilities, cgroups);
        Ok(Self { attached, capabilities, watch, until_loaded, until_attached })
    }
}

/// Logs the counters and reads the configuration again as often as a signal asks for it; returns when one asks to stop.
async fn until_stop(
    signals: &mut Signals,
    reports: &Handle,
    connections: &ConnectionCounters,
    reload: Reload,
    reload_due: &Notify,
) {
    let handling = async {
        loop {
            match signals.next().await {
                Signal::Stop => return,
                Signal::Reload => reload_due.notify_one(),
                Signal::LogCounters => log_counters(reports, connections).await,
            }
        }
    };
    tokio::select! {
        () = handling => {}
        () = reload.follow(reload_due) => {}
    }
}

/// The Kubernetes API, if it is to be a source; its watch ends with what is returned beside it.
#[cfg(feature = "kubernetes")]
fn watch_kubernetes(
    config: &Config,
    node: &str,
    began: KernelTime,
) -> Option<(Kubernetes, AbortOnDropHandle<()>)> {
    let settings = WatchSettings { kubeconfig: config.kubeconfig.clone(), node: node.to_owned() };
    let (kubernetes, watching) = config.kubernetes.then(|| Kubernetes::start(settings, began))?;
    Some((kubernetes, AbortOnDropHandle::new(watching)))
}

/// This build has no client of the Kubernetes API, and no configuration that requests one.
#[cfg(not(feature = "kubernetes"))]
fn watch_kubernetes(_: &Config, _: &str, _: KernelTime) -> Option<(Kubernetes, AbortOnDropHandle<()>)> {
    None
}

async fn log_counters(reports: &Handle, connections: &ConnectionCounters) {
    // Without a report, the engine is stopping.
    let Ok(report) = reports.report().await else { return };
    let counters: Vec<_> = report.counters.iter().map(|(name, count)| format!("{name}={count}")).collect();
    tracing::info!("counters: {connections} {}", counters.join(" "));
}

/// What is known of the time before this daemon.
struct Past {
    hub: Arc<Hub>,
    writer: Writer,
    memory: Memory,
    resumes: Option<Resumes>,
    place: Option<Place>,
}

impl Past {
    /// Nothing: a new epoch begins, and nothing is kept of it.
    fn none(place: Place, capacity: Capacity) -> Self {
        if let Err(error) = place.remove() {
            tracing::warn!(%error, "cannot remove the ledger of an earlier daemon");
        }
        let (hub, writer) = Hub::new(epoch(), capacity);
        Self { hub, writer, memory: Memory::new(place.bounds), resumes: None, place: None }
    }

    /// What an earlier daemon left.
    fn read(place: Place, capacity: Capacity, resumes: Resumes, sets: &[SetId]) -> Self {
        let (steps, is_adopted) = (clock::History::get(), resumes.same_maps);
        let replay = |history: History| {
            let (hub, mut writer) = Hub::resumed(history.position(), history.made(), capacity);
            let memory = history.replay(&mut writer)?;
            if let (true, Some(set)) = (is_adopted, sets.first()) {
                memory.check_set(*set, &place)?;
            }
            Ok::<_, Refusal>(Self { hub, writer, memory, resumes: Some(resumes), place: Some(place.clone()) })
        };
        match place.read().and_then(|history| history.map(replay).transpose()) {
            Ok(Some(past)) => past,
            Ok(None) => {
                if is_adopted {
                    tracing::warn!("there is no ledger of the earlier daemon; a new epoch begins");
                }
                Self { place: Some(place.clone()), ..Self::none(place, capacity) }
            }
            Err(refusal) => {
                let error = error_chain(&refusal);
                tracing::warn!(error, "the earlier daemon's ledger is refused; a new epoch begins");
                steps.restore();
                Self { place: Some(place.clone()), ..Self::none(place, capacity) }
            }
        }
    }
}

/// Where what is taken in is kept for the next daemon: beside the socket, which is in memory (`/run`).
fn ledger(config: &Config) -> Place {
    let mut directory = config.socket.as_os_str().to_owned();
    directory.push(".ledger");
    Place {
        directory: directory.into(),
        bytes: config.replay_bytes,
        bounds: bounds(config.probe.tracked_capacity),
    }
}

/// How much the node remembers: as many cgroups as the kernel side tracks, and in proportion to the defaults what belongs to them.
fn bounds(tracked: NonZeroU32) -> Bounds {
    Bounds::for_cgroups(usize::try_from(tracked.get()).unwrap_or(usize::MAX))
}

fn lock_file(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// Where no program sees limit writes, fanotify has to.
pub fn watch_limits(capabilities: &mut Capabilities, cgroups: &CgroupFs) -> Option<Watch> {
    let report = capabilities.reports.iter_mut().find(|report| report.capability.name == LIMIT_WRITES)?;
    if report.chosen.is_some() {
        return None;
    }
    match Watch::open(cgroups.clone()) {
        Ok(watch) => {
            report.substitute = Some(format!("fanotify:{}", cgroups.mount_point().display()));
            Some(watch)
        }
        Err(error) => {
            tracing::warn!(error = %format_args!("{:#}", anyhow::Error::from(error)), "limit writes are not seen");
            None
        }
    }
}

/// Starts what samples memory usage, unless that is off, or no usage can be read.
fn sample_memory(
    config: &Config,
    cgroups: &CgroupFs,
    capabilities: &Capabilities,
    engine: &Handle,
    answers: &mpsc::Sender<Observation>,
) -> anyhow::Result<Option<Arc<Sampling>>> {
    if !config.pressure {
        return Ok(None);
    }
    match MemoryFiles::find(cgroups) {
        Ok(files) => {
            tracing::info!(%files, "memory usage is sampled");
            let engine = engine.clone();
            let has_limits_watched = files.has_limits_watched(capabilities);
            let levels = move |known| {
                let mut changed = engine.memory_levels(known).ok()?;
                if let Some((_, levels)) = &mut changed
                    && !has_limits_watched
                {
                    levels.for_each(|level| level.limit = None);
                }
                Some(changed)
            };
            let notices = pressure::limit_notices(capabilities);
            let sampling =
                pressure::start(files, config.thresholds.clone(), notices, levels, answers.clone());
            Ok(Some(sampling.context("cannot start the sampler of memory usage")?))
        }
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "memory pressure is not reported");
            Ok(None)
        }
    }
}

/// Different for each run on this node: when it began, in the shortest form.
fn epoch() -> Epoch {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Epoch(format!("{:x}-{:x}", now.as_micros(), std::process::id()).into())
}

fn host_name() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".to_owned(), |name| name.nodename().to_string_lossy().into_owned())
}
