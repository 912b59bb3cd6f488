import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import {
  type CheckRequest,
  CheckRequestSchema,
  type CheckResponse,
  CheckResponseSchema,
} from '@mizzen/envoy-api/gen/envoy/service/auth/v3/external_auth_pb.js';

export interface AuthorizationServers {
  readonly grpcPort: number;
  readonly httpPort: number;
  /** What they were asked, the newest last. */
  readonly grpcRequests: CheckRequest[];
  readonly httpRequests: { readonly method: string; readonly url: string; readonly headers: http.IncomingHttpHeaders; readonly body: string }[];
  close(): void;
}

/**
 * Two servers of somebody else's that decide alike, by the header `x-decide` of the request: `allow`, `deny`, `deny-403`, `late`, `broken`. What they allow
 * they also change.
 */
export async function authorizationServers(): Promise<AuthorizationServers> {
  const grpcRequests: CheckRequest[] = [];
  const httpRequests: AuthorizationServers['httpRequests'] = [];
  const grpc = new Server();
  grpc.addService(
    {
      check: {
        path: '/envoy.service.auth.v3.Authorization/Check',
        requestStream: false,
        responseStream: false,
        requestDeserialize: (bytes: Buffer) => fromBinary(CheckRequestSchema, bytes),
        requestSerialize: (message: CheckRequest) => Buffer.from(toBinary(CheckRequestSchema, message)),
        responseSerialize: (message: CheckResponse) => Buffer.from(toBinary(CheckResponseSchema, message)),
        responseDeserialize: (bytes: Buffer) => fromBinary(CheckResponseSchema, bytes),
      },
    },
    {
      check(call: { readonly request: CheckRequest }, answer: (error: Error | null, response?: CheckResponse) => void) {
        grpcRequests.push(call.request);
        const { request, source } = call.request.attributes!;
        // Of a connection there is nothing to decide by but who it is.
        const wanted =
          request?.http === undefined ? (source!.principal.endsWith('/sa/bert') ? 'deny-403' : 'allow') : (request.http.headers['x-decide'] ?? 'allow');
        const header = (key: string, value: string, append?: boolean) => ({ header: { key, value }, ...(append === undefined ? {} : { append }) });
        if (wanted === 'broken') return answer(Object.assign(new Error('broken'), { code: 13 }));
        if (wanted === 'late') return void setTimeout(() => answer(null, create(CheckResponseSchema, {})), 2_000);
        if (wanted === 'deny-403') return answer(null, create(CheckResponseSchema, { status: { code: 7 } }));
        if (wanted === 'forge-denial')
          return answer(
            null,
            create(CheckResponseSchema, {
              status: { code: 16 },
              httpResponse: {
                case: 'deniedResponse',
                value: {
                  status: { code: 101 as never },
                  headers: [header('content-length', '1'), header('transfer-encoding', 'chunked'), header('x-city', 'München 日本')],
                  body: 'not you',
                },
              },
            }),
          );
        if (wanted === 'forge')
          return answer(
            null,
            create(CheckResponseSchema, {
              status: { code: 0 },
              httpResponse: {
                case: 'okResponse',
                value: {
                  headers: [
                    header('x-user', 'x\u010d\u010a\u010d\u010aGET /admin HTTP/1.1\u010d\u010a'),
                    header('x-city', 'München 日本'),
                    header('x-forged', 'a\r\nx-evil: b'),
                  ],
                  queryParametersToSet: [{ key: 'user', value: 'anna\r\n' }],
                  queryParametersToRemove: ['secret'],
                },
              },
            }),
          );
        if (wanted.startsWith('deny'))
          return answer(
            null,
            create(CheckResponseSchema, {
              status: { code: 16 },
              httpResponse: { case: 'deniedResponse', value: { status: { code: 401 }, headers: [header('x-why', 'no')], body: 'not you' } },
            }),
          );
        answer(
          null,
          create(CheckResponseSchema, {
            status: { code: 0 },
            httpResponse: {
              case: 'okResponse',
              value: {
                headers: [header('x-user', 'anna'), header('x-more', 'b', true)],
                headersToRemove: ['x-secret'],
                responseHeadersToAdd: [header('x-checked', 'yes')],
              },
            },
          }),
        );
      },
    } as never,
  );
  const grpcPort = await new Promise<number>((resolve, reject) =>
    grpc.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) => (error ? reject(error) : resolve(port))),
  );
  const server = http.createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      httpRequests.push({ method: request.method!, url: request.url!, headers: request.headers, body: Buffer.concat(chunks).toString() });
      const wanted = String(request.headers['x-decide'] ?? 'allow');
      // A status line as it stands, which a server of Node.js would not write.
      if (wanted.startsWith('raw ')) return void response.socket?.end(`HTTP/1.1 ${wanted.slice(4)} X\r\ncontent-length: 0\r\n\r\n`);
      if (wanted === 'broken') return void response.writeHead(500).end();
      if (wanted === 'late') return void setTimeout(() => response.end(), 2_000);
      if (wanted === 'deny-403') return void response.writeHead(403).end();
      if (wanted.startsWith('deny'))
        return void response.writeHead(401, { 'x-why': 'no', 'x-internal': 'secret', 'content-type': 'text/plain' }).end('not you');
      response.writeHead(200, { 'x-user': 'anna', 'x-internal': 'secret', 'x-checked': 'yes' }).end('ignored');
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    grpcPort,
    httpPort: (server.address() as AddressInfo).port,
    grpcRequests,
    httpRequests,
    close() {
      grpc.forceShutdown();
      server.closeAllConnections();
      server.close();
    },
  };
}
