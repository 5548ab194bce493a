//! What is done to the runtime, step by step, and the account of it with which the verdict is reached.

use futures_util::future::join_all;
use kwitness_tests::environment::Handler;
use kwitness_tests::prelude::*;

use crate::stage::{self, Stage};

const BURST_PODS: usize = 3;
const BURST_CONTAINERS: usize = 3;

#[derive(Debug)]
pub(crate) struct Deed {
    pod: Pod,
    id: String,
    name: Option<String>,
    program: Option<&'static str>,
    end: Option<End>,
    entered: &'static [(&'static str, End)],
}

impl Deed {
    /// As the rules of the event stream take it.
    pub(crate) fn life(&self) -> Life<'_> {
        Life {
            pod: &self.pod,
            id: &self.id,
            name: self.name.as_deref(),
            program: self.program,
            end: self.end,
            entered: self.entered,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Script<'a> {
    node: &'a Node,
    handler: Handler,
    stage: Stage,
    deeds: Vec<Deed>,
}

impl<'a> Script<'a> {
    pub(crate) fn new(node: &'a Node, handler: Handler, stage: Stage) -> Self {
        Self { node, handler, stage, deeds: Vec::new() }
    }

    pub(crate) fn finish(self) -> (Stage, Vec<Deed>) {
        (self.stage, self.deeds)
    }

    pub(crate) async fn play(&mut self) -> Result<()> {
        self.stage.pause().await;
        let shop = self.a_pod_starts().await?;
        self.a_program_from_outside(&shop).await?;
        self.a_job_fails(&shop).await?;
        self.the_server_is_killed_and_comes_back(&shop).await?;
        self.a_program_crashes().await?;
        self.an_entry_point_is_missing(&shop).await?;
        self.a_container_is_gone_in_a_moment(&shop).await?;
        self.many_at_once().await?;
        self.everything_is_deleted(&shop).await
    }

    async fn a_pod_starts(&mut self) -> Result<Pod> {
        stage::say(
            "Pod `shop` is started with a container `web`, and with a sandbox as every pod has one. The kernel \
             knows ids; names follow as soon as the runtime has reported them (`updated`).",
        );
        let pod = self.pod("shop").await?;
        let web = self.node.run(&pod, &ContainerSpec::new("web", &["/bin/sleep", "1000"])).await?;
        let killed = Some(End::Signal(9));
        self.record(&pod, &web, Some("web"), Some("/bin/sleep"), killed, &[("/bin/ls", End::Code(0))]);
        self.until_started(&web).await?;
        Ok(pod)
    }

    async fn a_program_from_outside(&mut self, shop: &Pod) -> Result<()> {
        stage::say(
            "Another process runs `kubectl exec web -- ls /`: a process comes into the container from outside.",
        );
        let web = self.latest("web");
        ensure!(self.node.exec(&web, &["/bin/ls", "/"]).await? == 0, "`ls /` failed in {}", shop.spec.name);
        self.stage.wait_until("the end of `ls`", |seen| seen.has(&web, "exited")).await?;
        self.stage.pause().await;
        Ok(())
    }

    async fn a_job_fails(&mut self, shop: &Pod) -> Result<()> {
        stage::say("A container `job` runs `exit 3`.");
        let job = self.node.run(shop, &ContainerSpec::shell("job", "exit 3")).await?;
        self.record(shop, &job, Some("job"), Some("/bin/sh"), Some(End::Code(3)), &[]);
        self.until_deleted(&job).await
    }

    async fn the_server_is_killed_and_comes_back(&mut self, shop: &Pod) -> Result<()> {
        stage::say("`web` is killed with SIGKILL, from outside the pod.");
        let web = self.latest("web");
        process::kill_pid(self.node.pid(&web).await?)?;
        self.until_deleted(&web).await?;
        stage::say("The kubelet starts `web` again, which is a new container.");
        let mut spec = ContainerSpec::new("web", &["/bin/sleep", "1000"]);
        spec.attempt = 1;
        let web = self.node.run(shop, &spec).await?;
        self.record(shop, &web, Some("web"), Some("/bin/sleep"), Some(End::Signal(9)), &[]);
        self.until_started(&web).await
    }

    async fn a_program_crashes(&mut self) -> Result<()> {
        stage::say("Pod `debug` shares the node's process ids; its container crashes with SIGSEGV.");
        let mut spec = PodSpec::new("debug", self.handler)?;
        spec.host_pid = true;
        let pod = self.run_pod(&spec).await?;
        let id = self.node.run(&pod, &ContainerSpec::shell("crash", "kill -SEGV $$")).await?;
        self.record(&pod, &id, Some("crash"), Some("/bin/sh"), Some(End::Signal(11)), &[]);
        self.until_deleted(&id).await?;
        self.node.remove_pod(&pod).await?;
        self.until_deleted(&pod.sandbox).await
    }

    async fn an_entry_point_is_missing(&mut self, shop: &Pod) -> Result<()> {
        stage::say(
            "A container's entry point does not exist: it is created, and stops without having started.",
        );
        let id = self.node.create(shop, &ContainerSpec::new("typo", &["/bin/srever"])).await?;
        ensure!(self.node.start_container(&id).await.is_err(), "the runtime started /bin/srever");
        self.record(shop, &id, Some("typo"), None, None, &[]);
        self.until_deleted(&id).await
    }

    async fn a_container_is_gone_in_a_moment(&mut self, shop: &Pod) -> Result<()> {
        stage::say("A container runs `true`: its program lives for a millisecond or two, and is not missed.");
        let id = self.node.run(shop, &ContainerSpec::new("blink", &["/bin/true"])).await?;
        self.record(shop, &id, Some("blink"), Some("/bin/true"), Some(End::Code(0)), &[]);
        self.until_deleted(&id).await
    }

    async fn many_at_once(&mut self) -> Result<()> {
        stage::say(&format!(
            "{BURST_PODS} pods with {BURST_CONTAINERS} containers each come and go at once."
        ));
        let (node, handler) = (self.node, self.handler);
        let burst = (0..BURST_PODS).map(|number| async move {
            let pod = node.run_pod(&PodSpec::new(&format!("burst-{number}"), handler)?).await?;
            let mut ids = Vec::new();
            for worker in 0..BURST_CONTAINERS {
                let name = format!("worker-{worker}");
                ids.push((node.run(&pod, &ContainerSpec::shell(&name, "exit 0")).await?, name));
            }
            for (id, _) in &ids {
                node.wait_exited(id).await?;
            }
            node.remove_pod(&pod).await?;
            anyhow::Ok((pod, ids))
        });
        let mut last = Vec::new();
        for done in join_all(burst).await {
            let (pod, ids) = done?;
            self.record_sandbox(&pod);
            for (id, name) in ids {
                self.record(&pod, &id, Some(&name), Some("/bin/sh"), Some(End::Code(0)), &[]);
                last.push(id);
            }
            last.push(pod.sandbox);
        }
        self.stage
            .wait_until("the burst's end", |seen: &Seen| last.iter().all(|id| seen.has(id, "deleted")))
            .await?;
        self.stage.pause().await;
        Ok(())
    }

    async fn everything_is_deleted(&mut self, shop: &Pod) -> Result<()> {
        stage::say("Pod `shop` is deleted.");
        self.node.remove_pod(shop).await?;
        self.until_deleted(&shop.sandbox).await?;
        // The runtime's answers may come after the kernel's last word.
        let deeds = &self.deeds;
        let known = |seen: &Seen| deeds.iter().all(|deed| seen.check_known(&deed.life()).is_ok());
        self.stage.wait_until("all names", known).await
    }

    async fn pod(&mut self, name: &str) -> Result<Pod> {
        let spec = PodSpec::new(name, self.handler)?;
        self.run_pod(&spec).await
    }

    async fn run_pod(&mut self, spec: &PodSpec) -> Result<Pod> {
        let pod = self.node.run_pod(spec).await?;
        self.record_sandbox(&pod);
        Ok(pod)
    }

    fn record_sandbox(&mut self, pod: &Pod) {
        self.record(pod, &pod.sandbox, None, Some("/pause"), Some(End::Signal(9)), &[]);
    }

    fn record(
        &mut self,
        pod: &Pod,
        id: &str,
        name: Option<&str>,
        program: Option<&'static str>,
        end: Option<End>,
        entered: &'static [(&'static str, End)],
    ) {
        let name = name.map(str::to_owned);
        self.deeds.push(Deed { pod: pod.clone(), id: id.to_owned(), name, program, end, entered });
    }

    fn latest(&self, name: &str) -> String {
        let found = self.deeds.iter().rev().find(|deed| deed.name.as_deref() == Some(name));
        found.map(|deed| deed.id.clone()).unwrap_or_default()
    }

    async fn until_started(&mut self, id: &str) -> Result<()> {
        self.stage.wait_until("`started`", |seen| seen.has(id, "started")).await?;
        self.stage.pause().await;
        Ok(())
    }

    async fn until_deleted(&mut self, id: &str) -> Result<()> {
        self.stage.wait_until("`deleted`", |seen| seen.has(id, "deleted")).await?;
        self.stage.pause().await;
        Ok(())
    }
}
