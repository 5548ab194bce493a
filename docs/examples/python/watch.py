"""Prints events, one JSON object a line, and survives restarts of the daemon.

    python3 watch.py unix:///run/kwitness/kwitness.sock [COUNT]

docs/api.md says how the modules that it imports are generated.
"""

import sys
import time

import grpc
from google.protobuf.json_format import MessageToJson
from kwitness.v1alpha1 import kwitness_pb2 as api
from kwitness.v1alpha1 import kwitness_pb2_grpc as rpc


def events(target):
    """Yields events for ever. A gap is an event like any other: what it names is missing."""
    position = None
    while True:
        with grpc.insecure_channel(target) as channel:
            request = api.WatchRequest(filter=api.Filter(kinds=[api.EVENT_KIND_STARTED, api.EVENT_KIND_STOPPED]))
            if position is None:
                request.since.FromSeconds(0)  # everything in the journal
            else:
                request.after.CopyFrom(position)
            try:
                for message in rpc.KwitnessStub(channel).Watch(request):
                    if message.HasField("begins_after"):
                        # Another epoch: the daemon was restarted, and a gap says so.
                        position = message.begins_after
                    for event in message.events:
                        # Events of a container that has just been named come late, with lower numbers.
                        if event.position.seq > position.seq:
                            position = event.position
                        yield event
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
        time.sleep(1)


def main():
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else None
    for number, event in enumerate(events(sys.argv[1]), start=1):
        if event.type == "gap":
            print(f"events are missing: {event.gap}", file=sys.stderr)
        print(MessageToJson(event, indent=None), flush=True)
        if number == limit:
            break


if __name__ == "__main__":
    main()
