use super::*;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

pub(crate) fn container() -> Container {
    let known = |text: &str| Some(text.to_owned());
    Container {
        id: "c".to_owned(),
        is_identified: true,
        cgroup_id: 7,
        cgroup_path: "/pod/c".to_owned(),
        namespace: known("dev"),
        pod: known("web"),
        pod_uid: known("11-22"),
        name: known("main"),
    }
}

pub(crate) const RAISE: Change = Change { from: Bytes(64 * MIB), to: Bytes(128 * MIB) };

/// A running pod that may be raised.
pub(crate) fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "web", "namespace": "dev", "uid": "11-22", "resourceVersion": "42" },
        "spec": {
            "nodeName": "node-1",
            "containers": [
                { "name": "sidecar", "resources": { "limits": { "memory": "1Gi" } } },
                { "name": "main", "resources": {
                    "requests": { "memory": "32Mi" }, "limits": { "memory": "64Mi" },
                } },
            ],
        },
        "status": { "phase": "Running", "qosClass": "Burstable" },
    })
}

fn patch(pod: Value) -> Result<Value, Refusal> {
    patch_after(None, pod)
}

/// The patch after the guard has requested that limit.
fn patch_after(asked: Option<Bytes>, pod: Value) -> Result<Value, Refusal> {
    let container = container();
    let pod = serde_json::from_value(pod).unwrap();
    Target::of(&container).unwrap().patch(&pod, Some("node-1"), RAISE, asked, PAGE)
}

fn resize(kind: &str, reason: &str, message: &str) -> Value {
    json!([{ "type": "Ready", "status": "True" },
           { "type": kind, "status": "True", "reason": reason, "message": message }])
}

#[test]
fn a_burstable_container_gets_a_limit_and_a_guaranteed_one_a_request_as_well() {
    let of = |resources: Value| {
        json!({
            "metadata": { "resourceVersion": "42" },
            "spec": { "containers": [{ "name": "main", "resources": resources }] },
        })
    };
    let memory = json!({ "memory": "128Mi" });
    assert_eq!(patch(pod()), Ok(of(json!({ "limits": memory }))));
    let mut guaranteed = pod();
    guaranteed["status"]["qosClass"] = json!("Guaranteed");
    assert_eq!(patch(guaranteed), Ok(of(json!({ "limits": memory, "requests": memory }))));
}

#[test]
fn a_pods_own_limit_moves_with_its_containers() {
    let of = |class: &str, change: Change| {
        let mut pod = pod();
        pod["status"]["qosClass"] = json!(class);
        pod["spec"]["resources"] = json!({ "limits": { "memory": "1Gi" }, "requests": { "memory": "1Gi" } });
        pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!(change.from.to_string());
        let (container, pod) = (container(), serde_json::from_value(pod).unwrap());
        let patch = Target::of(&container).unwrap().patch(&pod, None, change, None, PAGE).unwrap();
        assert!(is_about_pod(&patch));
        patch["spec"].clone()
    };
    let spec = |of_container: &str, of_pod: Value| {
        let resources = json!({ "limits": { "memory": of_container } });
        json!({ "containers": [{ "name": "main", "resources": resources }], "resources": of_pod })
    };
    let memory = |of_pod: &str| json!({ "memory": of_pod });
    assert_eq!(of("Burstable", RAISE), spec("128Mi", json!({ "limits": memory("1088Mi") })));
    let both = json!({ "limits": memory("1088Mi"), "requests": memory("1088Mi") });
    assert_eq!(of("Guaranteed", RAISE), spec("128Mi", both));
    let Change { from, to } = RAISE;
    let back = of("Burstable", Change { from: to, to: from });
    assert_eq!(back, spec("64Mi", json!({ "limits": memory("960Mi") })));
    let without = patch(pod()).unwrap();
    assert!(!is_about_pod(&without));
}

/// What the spec's change is for a container, or a pod, of a pod with that limit of its own.
fn patch_of(
    container: &Container,
    limit: &str,
    edit: fn(&mut Value),
    change: Change,
) -> Result<Value, Refusal> {
    let mut pod = pod();
    pod["spec"]["resources"] = json!({ "limits": { "memory": limit } });
    edit(&mut pod);
    let pod = serde_json::from_value(pod).unwrap();
    let mut patch = Target::of(container).unwrap().patch(&pod, None, change, None, PAGE)?;
    assert!(is_about_pod(&patch));
    Ok(patch["spec"].take())
}

#[test]
fn a_container_without_a_limit_has_its_pods_which_is_raised() {
    let unlimited: fn(&mut Value) = |pod| pod["spec"]["containers"][1]["resources"] = json!({});
    let raised = patch_of(&container(), "64Mi", unlimited, RAISE);
    assert_eq!(raised, Ok(json!({ "resources": { "limits": { "memory": "128Mi" } } })));
    let refused = patch_of(&container(), "96Mi", unlimited, RAISE).unwrap_err();
    assert_eq!(refused.name(), "specDiffers");
    let restarted: fn(&mut Value) = |pod| {
        pod["spec"]["containers"][1]["resources"] = json!({});
        pod["spec"]["containers"][0]["resizePolicy"] =
            json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    };
    let refused = patch_of(&container(), "64Mi", restarted, RAISE).unwrap_err();
    assert_eq!(refused.name(), "restartContainer", "another container would be");
}

#[test]
fn a_pods_own_limit_is_raised_alone_and_what_the_kernel_adds_to_it_is_left_out() {
    let of_pod = Container { cgroup_path: "/kubepods/burstable/podu".to_owned(), ..container() };
    let limits = |memory: &str| json!({ "resources": { "limits": { "memory": memory } } });
    assert_eq!(patch_of(&of_pod, "64Mi", |_| {}, RAISE), Ok(limits("128Mi")));
    let guaranteed = patch_of(&of_pod, "64Mi", |pod| pod["status"]["qosClass"] = json!("Guaranteed"), RAISE);
    let both = json!({ "limits": { "memory": "128Mi" }, "requests": { "memory": "128Mi" } });
    assert_eq!(guaranteed, Ok(json!({ "resources": both })));
    let overhead: fn(&mut Value) = |pod| pod["spec"]["overhead"] = json!({ "memory": "16Mi" });
    assert_eq!(patch_of(&of_pod, "48Mi", overhead, RAISE), Ok(limits("112Mi")));
    for (limit, expected) in [("64Mi", "specDiffers"), ("0", "specDiffers"), ("1e400", "podLimit")] {
        assert_eq!(patch_of(&of_pod, limit, overhead, RAISE).unwrap_err().name(), expected, "{limit}");
    }
    let without = patch_of(&of_pod, "64Mi", |pod| pod["spec"]["resources"] = Value::Null, RAISE);
    assert_eq!(without.unwrap_err().name(), "podLimit");
    let target = Target::of(&of_pod).unwrap();
    let accepted = |limit: &str| {
        let mut pod = pod();
        pod["spec"]["resources"] = json!({ "limits": { "memory": limit } });
        pod["spec"]["overhead"] = json!({ "memory": "16Mi" });
        target.is_accepted(&serde_json::from_value(pod).unwrap(), RAISE)
    };
    assert_eq!([accepted("112Mi"), accepted("48Mi"), accepted("x")], [Some(true), Some(false), None]);
}

/// Whatever quantities an API server says, the answer is a refusal by name.
#[test]
fn quantities_that_no_limit_can_be_are_refused() {
    for hostile in
        ["1e400", "9223372036854775808", "-1", "", "64Mi\u{0}", "NaN", "1e-400", "99999999999999999999Ei"]
    {
        for at in [0, 1] {
            let mut pod = pod();
            let memory = json!({ "limits": { "memory": hostile } });
            match at {
                0 => pod["spec"]["containers"][1]["resources"] = memory,
                _ => pod["spec"]["resources"] = memory,
            }
            let name = patch(pod).unwrap_err().name();
            assert!(["noSpecLimit", "specDiffers", "podLimit"].contains(&name), "{hostile}: {name}");
        }
    }
}

#[test]
fn what_the_spec_has_says_whether_a_change_was_accepted() {
    let container = container();
    let with = |change: fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        let pod = serde_json::from_value(pod).unwrap();
        Target::of(&container).unwrap().is_accepted(&pod, RAISE)
    };
    assert_eq!(with(|_| {}), Some(false));
    assert_eq!(
        with(|pod| pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!("128Mi")),
        Some(true)
    );
    assert_eq!(with(|pod| pod["metadata"]["uid"] = json!("33-44")), None);
    assert_eq!(with(|pod| pod["spec"]["containers"][1]["name"] = json!("other")), None);
}

#[test]
fn a_limit_that_the_kernel_has_rounded_down_is_the_specs() {
    let mut rounded = pod();
    rounded["spec"]["containers"][1]["resources"]["limits"]["memory"] =
        json!((64 * MIB + PAGE - 1).to_string());
    assert!(patch(rounded).is_ok());
}

#[test]
fn what_a_pod_must_be_for_a_raise() {
    let with = |change: fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        patch(pod).unwrap_err().name()
    };
    for (expected, change) in [
        ("otherPod", (|pod| pod["metadata"]["uid"] = json!("33-44")) as fn(&mut Value)),
        ("gone", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-29T12:00:00Z")),
        ("otherNode", |pod| pod["spec"]["nodeName"] = json!("node-2")),
        ("podNotRunning", |pod| pod["status"]["phase"] = json!("Succeeded")),
        ("resizePending", |pod| pod["status"]["conditions"] = resize(PENDING, "Deferred", "")),
        ("resizePending", |pod| pod["status"]["conditions"] = resize(IN_PROGRESS, "", "")),
        ("qosClass", |pod| pod["status"]["qosClass"] = json!("BestEffort")),
        ("qosClass", |pod| pod["status"]["qosClass"] = Value::Null),
        ("restartContainer", |pod| {
            pod["spec"]["containers"][1]["resizePolicy"] =
                json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
        }),
        ("podLimit", |pod| pod["spec"]["resources"] = json!({ "limits": { "memory": "1.5" } })),
        ("podLimit", |pod| pod["spec"]["resources"] = json!({ "limits": { "memory": "32Mi" } })),
        ("noSpecLimit", |pod| pod["spec"]["containers"][1]["name"] = json!("other")),
        ("noSpecLimit", |pod| pod["spec"]["containers"][1]["resources"]["limits"] = json!({})),
        ("specDiffers", |pod| {
            pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!("96Mi");
        }),
        ("specDiffers", |pod| {
            pod["spec"]["containers"][1]["resources"]["limits"]["memory"] = json!("63Mi");
        }),
    ] {
        assert_eq!(with(change), expected);
    }
    // A policy or a pod's limit for the CPU alone changes nothing, nor does a resize that is done.
    let mut other = pod();
    other["spec"]["containers"][1]["resizePolicy"] =
        json!([{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }]);
    other["spec"]["resources"] = json!({ "limits": { "cpu": "2" }, "requests": { "memory": "64Mi" } });
    other["status"]["conditions"] = resize(PENDING, "Deferred", "");
    other["status"]["conditions"][1]["status"] = json!("False");
    assert!(patch(other).is_ok());
}

#[test]
fn the_guards_own_resize_that_is_in_force_does_not_block_its_next_one() {
    let with = |asked: u64, kind, reason| {
        let mut pod = pod();
        pod["status"]["conditions"] = resize(kind, reason, "");
        patch_after(Some(Bytes(asked * MIB)), pod).map_err(|refusal| refusal.name())
    };
    let own = RAISE.from.0 / MIB;
    assert!(with(own, IN_PROGRESS, "").is_ok());
    assert_eq!(with(own, IN_PROGRESS, "Error"), Err("resizePending"), "the kubelet has failed");
    assert_eq!(with(own, PENDING, "Deferred"), Err("resizePending"), "of another container or resource");
    assert_eq!(with(own + 1, IN_PROGRESS, ""), Err("resizePending"), "another client's");
}

/// Of a resize by another client that no condition reports yet.
#[test]
fn a_spec_that_the_kubelet_has_not_allocated_is_no_base_for_a_raise() {
    let with = |change: fn(&mut Value)| {
        let mut pod = pod();
        pod["metadata"]["generation"] = json!(3);
        pod["status"]["observedGeneration"] = json!(3);
        let allocated = json!({ "name": "main", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                                "allocatedResources": { "memory": "32Mi", "cpu": "1" } });
        pod["status"]["containerStatuses"] = json!([allocated]);
        change(&mut pod);
        pod
    };
    let name = |pod: Value| patch(pod).map(drop).map_err(|refusal| refusal.name());
    let unseen: fn(&mut Value) = |pod| pod["status"]["observedGeneration"] = json!(2);
    let unallocated: fn(&mut Value) = |pod| {
        pod["status"]["containerStatuses"][0]["allocatedResources"]["memory"] = json!("48Mi");
    };
    let proposed: fn(&mut Value) = |pod| pod["status"]["resize"] = json!("Proposed");
    for change in [unseen, unallocated, proposed] {
        assert_eq!(name(with(change)), Err("resizePending"));
        assert!(patch_after(Some(RAISE.from), with(change)).is_ok(), "the guard's own, which is in force");
    }
    let same: [fn(&mut Value); 5] = [
        |_| {},
        |pod| pod["status"]["observedGeneration"] = json!(0),
        |pod| pod["status"]["observedGeneration"] = Value::Null,
        |pod| pod["status"]["containerStatuses"][0]["allocatedResources"]["memory"] = json!("33554432"),
        |pod| pod["status"]["containerStatuses"][0]["allocatedResources"] = Value::Null,
    ];
    for change in same {
        assert_eq!(name(with(change)), Ok(()));
    }
}

/// The spec has the lower limit, the kernel still the higher one.
#[test]
fn a_raise_replaces_the_guards_own_return_and_no_one_elses() {
    let raise = |asked: u64, from: u64, edit: fn(&mut Value)| {
        let (container, mut pod) = (container(), pod());
        edit(&mut pod);
        let change = Change { from: Bytes(from * MIB), to: Bytes(192 * MIB) };
        let (asked, pod) = (Some(Bytes(asked * MIB)), serde_json::from_value(pod).unwrap());
        let patch = Target::of(&container).unwrap().patch(&pod, None, change, asked, PAGE);
        patch.map(|patch| patch["spec"].clone()).map_err(|refusal| refusal.name())
    };
    let raised =
        json!({ "containers": [{ "name": "main", "resources": { "limits": { "memory": "192Mi" } } }] });
    let states: [fn(&mut Value); 4] = [
        |_| {},
        |pod| pod["status"]["conditions"] = resize(IN_PROGRESS, "", ""),
        |pod| pod["status"]["conditions"] = resize(IN_PROGRESS, ERROR, "usage is higher"),
        |pod| pod["status"]["conditions"] = resize(PENDING, "Deferred", ""),
    ];
    for state in states {
        assert_eq!(raise(64, 128, state), Ok(raised.clone()));
        assert_eq!(raise(64, 192, state), Ok(raised.clone()), "what it had");
    }
    assert_eq!(raise(128, 128, |_| {}), Err("specDiffers"), "another client has lowered it");
    let with_pod: fn(&mut Value) = |pod| pod["spec"]["resources"] = json!({ "limits": { "memory": "1Gi" } });
    let moved = raise(64, 128, with_pod).unwrap();
    assert_eq!(moved["resources"]["limits"]["memory"], "1152Mi", "by as much as the container's in the spec");
}

#[test]
fn a_container_without_names_is_not_looked_for() {
    for forget in [
        |container: &mut Container| container.namespace = None,
        |container: &mut Container| container.pod = None,
        |container: &mut Container| container.pod_uid = None,
        |container: &mut Container| container.name = None,
    ] {
        let mut container = container();
        forget(&mut container);
        assert_eq!(Target::of(&container), Err(ResizeRefusal::Unnamed));
    }
}

#[test]
fn what_the_kubelet_refuses_afterwards_is_refused_with_its_words() {
    let container = container();
    let refused = |conditions: Value| {
        let mut pod = pod();
        pod["status"]["conditions"] = conditions;
        let pod = serde_json::from_value(pod).unwrap();
        Target::of(&container).unwrap().refused(&pod)
    };
    let said = || "Deferred: no room".to_owned();
    let deferred = ResizeRefusal::Deferred(said());
    assert_eq!(refused(resize(PENDING, "Deferred", "no room")), Some(deferred.into()));
    for (kind, reason, name) in
        [(PENDING, "Infeasible", "resizeInfeasible"), (IN_PROGRESS, "Error", "resizeFailed")]
    {
        assert_eq!(refused(resize(kind, reason, "why")).unwrap().name(), name);
    }
    assert_eq!(refused(resize(IN_PROGRESS, "", "")), None);
    assert_eq!(refused(json!([])), None);
}

#[test]
fn a_condition_of_an_earlier_spec_says_nothing_of_this_one() {
    let container = container();
    let refused = |observed: u64| {
        let mut pod = pod();
        pod["metadata"]["generation"] = json!(3);
        pod["status"]["conditions"] = resize(PENDING, "Deferred", "no room");
        pod["status"]["conditions"][1]["observedGeneration"] = json!(observed);
        Target::of(&container).unwrap().refused(&serde_json::from_value(pod).unwrap())
    };
    assert_eq!(refused(2), None);
    for observed in [0, 3] {
        assert_eq!(refused(observed).unwrap().name(), "resizeDeferred");
    }
}

#[test]
fn a_pod_that_is_deleted_or_replaced_afterwards_ends_the_wait() {
    let container = container();
    let target = Target::of(&container).unwrap();
    let mut deleted = pod();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-29T12:00:00Z");
    assert_eq!(target.refused(&serde_json::from_value(deleted).unwrap()), Some(Refusal::Gone));
    let mut replaced = pod();
    replaced["metadata"]["uid"] = json!("33-44");
    let replaced = serde_json::from_value(replaced).unwrap();
    assert_eq!(target.refused(&replaced), Some(ResizeRefusal::OtherPod.into()));
}

#[test]
fn texts_of_the_api_are_escaped_and_bounded() {
    assert_eq!(text("a\x1b[31mb\n"), "a\\x1b[31mb\\n");
    let long = text(&"ä".repeat(TEXT_MAX + 1));
    assert_eq!(long.chars().count(), TEXT_MAX + 1);
    assert!(long.ends_with('…'));
}
