import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { constants } from 'node:http2';
import { type ConnectNodeAdapterOptions, connectNodeAdapter } from '@connectrpc/connect-node';

/** Limits that hold before a caller is authenticated: what an RPC may cost until its response begins. */
export interface GrpcLimits {
  /** Of one message, before and after decompression; gRPC's own default. */
  readonly maxMessageBytes: number;
  /** Of all requests together whose response has not begun; further requests are refused with RESOURCE_EXHAUSTED. */
  readonly maxPendingBytes: number;
  /** From the head of a request to the beginning of its response; undefined: no limit, for streams that wait for events. */
  readonly maxResponseDelayMs: number | undefined;
}

export const defaultGrpcLimits: GrpcLimits = { maxMessageBytes: 4 * 1024 * 1024, maxPendingBytes: 64 * 1024 * 1024, maxResponseDelayMs: 30_000 };

/** For HTTP/2 servers of ours: what one session may hold open at once. */
export const grpcServerSettings = { settings: { maxConcurrentStreams: 250, maxHeaderListSize: 16 * 1024 } } as const;

const grpcResourceExhausted = '8';
const trailersMs = 100;

/**
 * A listener of an HTTP/2 server for gRPC services. The library beneath makes a URL of what the client calls itself asked (`:authority`), and throws where that
 * is none: a socket's path, as gRPC's clients of Unix sockets send it, or anything else that a stranger thinks of. Nobody here reads it.
 */
export function grpcHandler(
  options: ConnectNodeAdapterOptions,
  limits: Partial<GrpcLimits> = {},
): (request: Http2ServerRequest, response: Http2ServerResponse) => void {
  const { maxMessageBytes, maxPendingBytes, maxResponseDelayMs } = { ...defaultGrpcLimits, ...limits };
  const handler = connectNodeAdapter({ readMaxBytes: maxMessageBytes, ...options });
  let pendingBytes = 0;
  return (request, response) => {
    if (pendingBytes >= maxPendingBytes) {
      const headers = { 'content-type': 'application/grpc', 'grpc-status': grpcResourceExhausted, 'grpc-message': 'too many requests are being read' };
      response.writeHead(200, headers).end();
      return;
    }
    const { stream } = request;
    let counted = 0;
    const release = () => {
      pendingBytes -= counted;
      counted = 0;
    };
    const push = request.push.bind(request);
    request.push = (chunk: Buffer | null) => {
      if (response.headersSent) release();
      else if (chunk !== null) {
        counted += chunk.length;
        pendingBytes += chunk.length;
        if (pendingBytes > maxPendingBytes || counted > 2 * maxMessageBytes) {
          stream.close(constants.NGHTTP2_ENHANCE_YOUR_CALM);
          return false;
        }
      }
      return push(chunk);
    };
    const deadline =
      maxResponseDelayMs === undefined
        ? undefined
        : setTimeout(() => !response.headersSent && stream.close(constants.NGHTTP2_CANCEL), maxResponseDelayMs).unref();
    // A response that is complete before its request: the rest of the request is not wanted (RFC 9113, section 8.1).
    // Its trailers go out after `finish`.
    stream.once('finish', () => !stream.readableEnded && setTimeout(() => stream.close(constants.NGHTTP2_NO_ERROR), trailersMs).unref());
    stream.once('close', () => {
      clearTimeout(deadline);
      release();
    });
    request.headers[':authority'] = 'localhost';
    try {
      handler(request, response);
    } catch {
      // A request is never worth the process.
      response.stream?.close(constants.NGHTTP2_INTERNAL_ERROR);
    }
  };
}
