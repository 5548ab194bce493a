//! The forwarded port: who is closed, what it answers, and what becomes of it while its address is taken.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn a_forwarded_client_that_never_begins_is_closed() {
    let served = Served::start().await;
    let mut silent = TcpStream::connect(served.forwarded).await.unwrap();
    // Once nothing else is to be done, the time passes.
    tokio::time::pause();
    let mut read = [0; 64];
    loop {
        // The server's own settings come first.
        match timeout(Duration::from_secs(3600), silent.read(&mut read)).await.expect("it is closed") {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn a_forwarded_port_answers_and_takes_nothing_in() {
    let served = Served::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", served.forwarded)).unwrap();
    let mut client = KwitnessClient::new(endpoint.connect().await.unwrap());
    let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.node_name, "node-1");
    let refused = client.report_cri_requests(proto::ReportCriRequestsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = client.report_guard_events(proto::ReportGuardEventsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut on_socket = KwitnessClient::new(served.channel().await);
    on_socket.report_cri_requests(proto::ReportCriRequestsRequest::default()).await.unwrap();
    served.stop.cancel();
    timeout(SOON, served.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn of_forwarded_connections_the_one_with_most_streams_gives_one_up() {
    let served = Served::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", served.forwarded)).unwrap();
    let client = async || KwitnessClient::new(endpoint.connect().await.unwrap());
    let watch = async |client: &mut KwitnessClient<Channel>| {
        client.watch(proto::WatchRequest::default()).await.map(tonic::Response::into_inner)
    };
    let (mut many, mut other) = (client().await, client().await);
    let [mut first, mut second] = [watch(&mut many).await.unwrap(), watch(&mut many).await.unwrap()];
    assert_eq!(watch(&mut many).await.unwrap_err().code(), Code::ResourceExhausted);
    let mut others = watch(&mut other).await.unwrap();
    next(&mut first).await;
    next(&mut others).await;
    let ended = async {
        while second.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    let ended = timeout(SOON, ended).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::ResourceExhausted);
    assert!(ended.message().contains("another client calls watch"), "{ended}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_problem_and_is_served_once_it_can_be_had() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let served = Served::start_at(taken.local_addr().unwrap(), MaxCalls::all(2)).await;
    let mut on_socket = KwitnessClient::new(served.channel().await);
    let mut problems = async || {
        let status = on_socket.status(proto::StatusRequest {}).await.unwrap().into_inner();
        status.problems.into_iter().map(|problem| (problem.name, problem.found)).collect::<Vec<_>>()
    };
    let [(name, found)] = &problems().await[..] else { panic!("one problem") };
    assert_eq!(name, "address_unavailable");
    assert!(found.starts_with(&format!("api.listen: cannot listen on {}", served.forwarded)), "{found}");
    drop(taken);
    let recovered = async {
        while !problems().await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, recovered).await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", served.forwarded)).unwrap();
    let mut forwarded = KwitnessClient::new(endpoint.connect().await.unwrap());
    forwarded.status(proto::StatusRequest {}).await.unwrap();
}
