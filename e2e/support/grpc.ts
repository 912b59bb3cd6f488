import * as grpc from '@grpc/grpc-js';

const bytes = { serialize: (value: Buffer) => value, deserialize: (value: Buffer) => value };
const method = (path: string, requestStream: boolean, responseStream: boolean): grpc.MethodDefinition<Buffer, Buffer> => ({
  path,
  requestStream,
  responseStream,
  requestSerialize: bytes.serialize,
  requestDeserialize: bytes.deserialize,
  responseSerialize: bytes.serialize,
  responseDeserialize: bytes.deserialize,
});

/** A service whose messages are bytes. */
export const echo = {
  say: method('/test.Echo/Say', false, false),
  count: method('/test.Echo/Count', false, true),
  collect: method('/test.Echo/Collect', true, false),
  chat: method('/test.Echo/Chat', true, true),
} as const;

export interface GrpcServer {
  readonly port: number;
  /** Calls of `say` so far. */
  calls: number;
  close(): Promise<void>;
}

/** A server by grpc-js. `say` answers with its name and the message; how it fails is asked for by metadata `fail: CODE` and `fail-first: N`. */
export async function grpcServer(name: string): Promise<GrpcServer> {
  const server = new grpc.Server();
  const state: GrpcServer = { port: 0, calls: 0, close: async () => server.forceShutdown() };
  const failure = (metadata: grpc.Metadata): { code: number; details: string } | undefined => {
    const code = Number(metadata.get('fail')[0] ?? 0);
    const first = metadata.get('fail-first')[0];
    return code > 0 && (first === undefined || state.calls <= Number(first)) ? { code, details: `as asked: ${code}` } : undefined;
  };
  server.addService(echo, {
    say(call: grpc.ServerUnaryCall<Buffer, Buffer>, callback: grpc.sendUnaryData<Buffer>) {
      state.calls++;
      if (call.metadata.get('never').length > 0) return;
      const failed = failure(call.metadata);
      if (failed) return callback(failed);
      const trailers = new grpc.Metadata();
      trailers.set('x-served-by', name);
      callback(null, Buffer.from(`${name}: ${call.request}`), trailers);
    },
    count(call: grpc.ServerWritableStream<Buffer, Buffer>) {
      for (let i = 0; i < Number(call.request.toString()); i++) call.write(Buffer.from(String(i)));
      call.end();
    },
    collect(call: grpc.ServerReadableStream<Buffer, Buffer>, callback: grpc.sendUnaryData<Buffer>) {
      let sum = 0;
      call.on('data', (message: Buffer) => {
        sum += message.length;
      });
      call.on('end', () => callback(null, Buffer.from(String(sum))));
    },
    chat(call: grpc.ServerDuplexStream<Buffer, Buffer>) {
      call.on('data', (message: Buffer) => call.write(Buffer.from(message.toString().toUpperCase())));
      call.on('end', () => call.end());
    },
  });
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))),
  );
  return Object.assign(state, { port });
}

const EchoClient = grpc.makeGenericClientConstructor(echo, 'Echo');
type Unary = (
  request: Buffer,
  metadata: grpc.Metadata,
  options: grpc.CallOptions,
  callback: (error: grpc.ServiceError | null, answer: Buffer) => void,
) => grpc.ClientUnaryCall;

export interface GrpcAnswer {
  readonly code: number;
  readonly details: string;
  readonly text: string;
  readonly trailers: grpc.Metadata;
}

/**
 * A client by grpc-js, whatever it reaches under the name `authority`. As all gRPC clients do, it calls again by itself where a call has
 * not left it: nghttp2 refuses what has been asked for in the moment in which a GOAWAY arrives.
 */
export class GrpcClient {
  readonly #client: grpc.Client & Record<string, unknown>;

  constructor(port: number, authority = 'echo.example') {
    this.#client = new EchoClient(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
      'grpc.default_authority': authority,
      // Each client has a connection of its own.
      'grpc.use_local_subchannel_pool': 1,
    }) as never;
  }

  say(text: string, metadata: Record<string, string> = {}, deadlineMs = 30_000): Promise<GrpcAnswer> {
    return new Promise((resolve) => {
      let body = '';
      const call = (this.#client['say'] as Unary).call(
        this.#client,
        Buffer.from(text),
        metadataOf(metadata),
        { deadline: Date.now() + deadlineMs },
        (_error, answer) => {
          body = answer?.toString() ?? '';
        },
      );
      call.on('status', (status) => setImmediate(() => resolve({ code: status.code, details: status.details, text: body, trailers: status.metadata })));
    });
  }

  async count(to: number): Promise<string[]> {
    const messages: string[] = [];
    const call = (this.#client['count'] as (request: Buffer) => grpc.ClientReadableStream<Buffer>).call(this.#client, Buffer.from(String(to)));
    for await (const message of call) messages.push(String(message));
    return messages;
  }

  collect(parts: readonly Buffer[]): Promise<string> {
    return new Promise((resolve, reject) => {
      const call = (this.#client['collect'] as (callback: (error: Error | null, answer: Buffer) => void) => grpc.ClientWritableStream<Buffer>).call(
        this.#client,
        (error, answer) => (error ? reject(error) : resolve(answer.toString())),
      );
      for (const part of parts) call.write(part);
      call.end();
    });
  }

  chat(): grpc.ClientDuplexStream<Buffer, Buffer> {
    return (this.#client['chat'] as () => grpc.ClientDuplexStream<Buffer, Buffer>).call(this.#client);
  }

  close(): void {
    this.#client.close();
  }
}

function metadataOf(fields: Record<string, string>): grpc.Metadata {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(fields)) metadata.set(name, value);
  return metadata;
}
