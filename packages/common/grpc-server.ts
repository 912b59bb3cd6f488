import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { constants } from 'node:http2';
import { type ConnectNodeAdapterOptions, connectNodeAdapter } from '@connectrpc/connect-node';
import { peerOf } from './connection-guard.ts';
import { errorBoundary } from './error-boundary.ts';
import { GrpcEnvelopes } from './grpc-envelopes.ts';
import { PendingRequests } from './pending-requests.ts';

const boundary = errorBoundary('grpc.request');

/** Limits that hold before a caller is authenticated: what an RPC may cost until its response begins. */
export interface GrpcLimits {
  /** Of one message, before and after decompression; gRPC's own default. */
  readonly maxMessageBytes: number;
  /** Of all requests together whose response has not begun; the largest ends. */
  readonly maxPendingBytes: number;
  /** Requests of one address that are still being read; one more ends the oldest. Those that wait for their response; further ones are refused with RESOURCE_EXHAUSTED. */
  readonly maxReadingPerPeer: number;
  readonly maxWaitingPerPeer: number;
  /** From the head of a request to the beginning of its response; undefined: no limit, for streams that wait for events. */
  readonly maxResponseDelayMs: number | undefined;
}

export const defaultGrpcLimits: GrpcLimits = {
  maxMessageBytes: 4 * 1024 * 1024,
  maxPendingBytes: 64 * 1024 * 1024,
  maxReadingPerPeer: 500,
  maxWaitingPerPeer: 1_000,
  maxResponseDelayMs: 30_000,
};

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
  const { maxMessageBytes, maxResponseDelayMs, ...pendingLimits } = { ...defaultGrpcLimits, ...limits };
  const handler = connectNodeAdapter({ readMaxBytes: maxMessageBytes, ...options });
  const requests = new PendingRequests(pendingLimits);
  return (request, response) => {
    const { stream } = request;
    let counted = 0;
    // A request whose response has begun counts no more; it is only found out here that it has.
    const refuse = () => !response.headersSent && stream.close(constants.NGHTTP2_ENHANCE_YOUR_CALM);
    const pending = requests.open(peerOf(stream.session?.socket ?? { remoteAddress: undefined }), refuse);
    const push = request.push.bind(request);
    const envelopes = /^application\/(grpc|connect\+)/.test(request.headers['content-type'] ?? '') ? new GrpcEnvelopes(maxMessageBytes) : undefined;
    request.push = (chunk: Buffer | null) => {
      if (response.headersSent) pending.release();
      else if (chunk !== null) {
        counted += chunk.length;
        pending.add(chunk.length);
        if (counted > 2 * maxMessageBytes) refuse();
        if (stream.closed) return false;
      } else if (!stream.closed && !pending.wasRead()) {
        const headers = { 'content-type': 'application/grpc', 'grpc-status': grpcResourceExhausted, 'grpc-message': 'too many requests of this peer wait' };
        response.writeHead(200, headers).end();
      }
      if (envelopes === undefined) return push(chunk);
      const bytes = chunk === null ? envelopes.end() : envelopes.push(chunk);
      const wantsMore = bytes === undefined || push(bytes);
      return chunk === null ? push(null) : wantsMore;
    };
    const deadline =
      maxResponseDelayMs === undefined
        ? undefined
        : boundary.after(maxResponseDelayMs, () => void (!response.headersSent && stream.close(constants.NGHTTP2_CANCEL))).unref();
    // A response that is complete before its request: the rest of the request is not wanted (RFC 9113, section 8.1).
    // Its trailers go out after `finish`.
    boundary.own(stream).once('finish', () => {
      if (!stream.readableEnded) boundary.after(trailersMs, () => stream.close(constants.NGHTTP2_NO_ERROR)).unref();
    });
    stream.once('close', () => {
      clearTimeout(deadline);
      pending.release();
    });
    request.headers[':authority'] = 'localhost';
    const failed = () => response.stream?.close(constants.NGHTTP2_INTERNAL_ERROR);
    boundary.run(() => handler(request, response)) || boundary.run(failed);
  };
}
