import { ResponseHead } from '../message/response-head.ts';
import { encodeGrpcMessage } from './grpc.ts';

/** Heads of answers that the proxy gives itself. */

export function plainReply(status: number, body: Buffer, contentType: string): ResponseHead {
  const head = new ResponseHead();
  const { headers } = head;
  head.status = status;
  head.contentLength = status === 204 || status === 304 ? 0 : body.length;
  // RFC 9110 section 8.6: a 204 must not have one.
  if (status !== 204) headers.add('content-length', String(body.length));
  if (body.length > 0 && contentType !== '') headers.add('content-type', contentType);
  return head;
}

/** An answer that a gRPC client understands: only a head, with the status that otherwise trailers would have ("Trailers-Only"). */
export function grpcReply(status: number, message: string, contentType = 'application/grpc'): ResponseHead {
  const head = new ResponseHead();
  head.status = 200;
  head.headers.add('content-type', contentType);
  head.headers.add('grpc-status', String(status));
  if (message !== '') head.headers.add('grpc-message', encodeGrpcMessage(message));
  return head;
}
