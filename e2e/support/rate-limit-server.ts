import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import type { Init } from '@mizzen/envoy-api';
import {
  RateLimitResponse_Code as Code,
  type RateLimitRequest,
  RateLimitRequestSchema,
  type RateLimitResponse,
  RateLimitResponseSchema,
  RateLimitResponse_RateLimit_Unit as Unit,
} from '@mizzen/envoy-api/gen/envoy/service/ratelimit/v3/rls_pb.js';

export interface RateLimitServer {
  readonly port: number;
  /** What it was asked, the newest last. */
  readonly requests: RateLimitRequest[];
  close(): void;
}

const method = '/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit';

/** A RateLimitService that decides by the value of the descriptor entry `decide`: `over`, `broken`, `late`, `garbage`, `unknown`, anything else passes. */
export async function rateLimitServer(): Promise<RateLimitServer> {
  const requests: RateLimitRequest[] = [];
  const server = new Server();
  server.addService(
    {
      ask: {
        path: method,
        requestStream: false,
        responseStream: false,
        requestDeserialize: (bytes: Buffer) => fromBinary(RateLimitRequestSchema, bytes),
        requestSerialize: (message: RateLimitRequest) => Buffer.from(toBinary(RateLimitRequestSchema, message)),
        responseSerialize: (message: RateLimitResponse | Buffer) =>
          Buffer.isBuffer(message) ? message : Buffer.from(toBinary(RateLimitResponseSchema, message)),
        responseDeserialize: (bytes: Buffer) => fromBinary(RateLimitResponseSchema, bytes),
      },
    },
    {
      ask({ request }: { readonly request: RateLimitRequest }, answer: (error: Error | null, response?: RateLimitResponse | Buffer) => void) {
        requests.push(request);
        const entries = request.descriptors.flatMap((descriptor) => descriptor.entries);
        const decide = entries.find(({ key }) => key === 'decide')?.value ?? '';
        if (decide === 'broken') return answer(Object.assign(new Error('broken'), { code: 13 }));
        if (decide === 'late') return void setTimeout(() => answer(null, create(RateLimitResponseSchema, {})), 1_000);
        if (decide === 'garbage') return answer(null, Buffer.from([0xff, 0xff, 0xff]));
        if (decide === 'unknown') return answer(null, create(RateLimitResponseSchema, {}));
        const code = decide === 'over' ? Code.OVER_LIMIT : Code.OK;
        const response: Init<typeof RateLimitResponseSchema> = {
          overallCode: code,
          statuses: [
            {
              code,
              currentLimit: { name: 'per-path', requestsPerUnit: 10, unit: Unit.MINUTE },
              limitRemaining: decide === 'over' ? 0 : 7,
              durationUntilReset: { seconds: 30n, nanos: 5 },
            },
            { code: Code.OK, currentLimit: { requestsPerUnit: 1_000, unit: Unit.HOUR }, limitRemaining: 990, durationUntilReset: { seconds: 900n } },
            { code: Code.OK },
          ],
          responseHeadersToAdd: [{ key: 'x-from-limiter', value: decide }],
          requestHeadersToAdd: [{ key: 'x-for-service', value: 'counted' }],
          ...(decide === 'over' ? { rawBody: Buffer.from('too many') } : {}),
        };
        answer(null, create(RateLimitResponseSchema, response));
      },
    } as never,
  );
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))),
  );
  return { port, requests, close: () => server.forceShutdown() };
}
