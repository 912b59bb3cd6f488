"""A gRPC client by grpcio: python3 grpc_client.py TARGET AUTHORITY. Calls the methods of test.Echo and says what came of it."""
import sys

import grpc

target, authority = sys.argv[1:3]


def same(value):
    return value


channel = grpc.insecure_channel(target, options=[("grpc.default_authority", authority), ("grpc.enable_retries", 0)])
say = channel.unary_unary("/test.Echo/Say", same, same)
count = channel.unary_stream("/test.Echo/Count", same, same)
collect = channel.stream_unary("/test.Echo/Collect", same, same)
chat = channel.stream_stream("/test.Echo/Chat", same, same)

print("say", say(b"hello", timeout=10).decode())
print("count", sum(1 for _ in count(b"1000", timeout=10)))
print("collect", collect((bytes(100_000) for _ in range(30)), timeout=20).decode())
print("chat", b",".join(chat((word for word in (b"a", b"b", b"c")), timeout=10)).decode())
for name, metadata in (("failed", (("fail", "5"),)), ("late", (("never", "1"),))):
    try:
        say(b"x", metadata=metadata, timeout=0.5)
    except grpc.RpcError as error:
        print(name, error.code().name)
