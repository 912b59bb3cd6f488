import type { Cluster } from './cluster.ts';
import { sendOwnRequest } from './own-request.ts';

export interface UnaryResult {
  /** grpc-status; 0 with `message`, 14 when there was no answer. */
  readonly status: number;
  readonly message: Buffer | undefined;
  readonly detail: string;
}

const maxAnswerBytes = 4 * 1024 * 1024;
const grpcFields = [
  ['content-type', 'application/grpc'],
  ['te', 'trailers'],
] as const;

/** `metadata` is sent beside what gRPC needs. A unary gRPC call over a cluster that speaks HTTP/2 (grpc PROTOCOL-HTTP2.md). `method` is `package.Service/Method`. */
export function unaryCall(
  cluster: Cluster,
  authority: string,
  method: string,
  message: Uint8Array,
  timeoutMs: number,
  done: (result: UnaryResult) => void,
  metadata: readonly (readonly [string, string])[] = [],
): () => void {
  const body = Buffer.allocUnsafe(5 + message.length);
  body[0] = 0;
  body.writeUInt32BE(message.length, 1);
  body.set(message, 5);
  return sendOwnRequest(
    cluster,
    {
      method: 'POST',
      path: `/${method}`,
      authority,
      fields: metadata.length === 0 ? grpcFields : [...grpcFields, ...metadata],
      body,
      timeoutMs,
      maxAnswerBytes,
    },
    (answer) => {
      if ('reason' in answer) return done({ status: answer.reason === 'timeout' ? 4 : 14, message: undefined, detail: answer.detail });
      const { head, body: content, trailers } = answer;
      if (head.status !== 200) return done({ status: 14, message: undefined, detail: `HTTP status ${head.status}` });
      const found = trailers.find(([name]) => name === 'grpc-status')?.[1] ?? head.headers.get('grpc-status');
      const status = found === undefined ? 2 : Number(found);
      const detail = trailers.find(([name]) => name === 'grpc-message')?.[1] ?? head.headers.get('grpc-message') ?? '';
      if (status !== 0) return done({ status, message: undefined, detail });
      if (content.length < 5 || content[0] !== 0 || content.readUInt32BE(1) !== content.length - 5)
        return done({ status: 13, message: undefined, detail: 'the answer is no single message' });
      done({ status, message: content.subarray(5), detail: '' });
    },
  );
}
