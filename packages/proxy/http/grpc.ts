import { timerMs } from '@mizzen/common';
import type { RequestHead } from '../message/request-head.ts';

/** gRPC over HTTP (grpc PROTOCOL-HTTP2.md), as far as a proxy has to know it. */

/** Status codes by the names that YAML uses (grpc statuscodes.md). */
export const grpcStatus = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

/** `application/grpc`, alone or with the name of a message format; not gRPC-Web. */
export function isGrpcRequest(head: RequestHead): boolean {
  const type = head.headers.get('content-type');
  return type !== undefined && isGrpcType(type);
}

export function isGrpcType(type: string): boolean {
  if (type.charCodeAt(0) !== 0x61 || !type.startsWith('application/grpc')) return false;
  const next = type.charCodeAt(16);
  return type.length === 16 || next === 0x2b || next === 0x3b || next === 0x20;
}

/** What an answer of HTTP means to a caller of gRPC (grpc http-grpc-status-mapping.md). */
export function grpcStatusOfHttp(status: number): number {
  switch (status) {
    case 200:
      return grpcStatus.UNKNOWN;
    case 400:
      return grpcStatus.INTERNAL;
    case 401:
      return grpcStatus.UNAUTHENTICATED;
    case 403:
      return grpcStatus.PERMISSION_DENIED;
    case 404:
      return grpcStatus.UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
      return grpcStatus.UNAVAILABLE;
    default:
      return grpcStatus.UNKNOWN;
  }
}

/** What a status of gRPC means to a caller of plain HTTP (googleapis google/rpc/code.proto). */
export function httpStatusOfGrpc(status: number): number {
  switch (status) {
    case grpcStatus.OK:
      return 200;
    case grpcStatus.CANCELLED:
      return 499;
    case grpcStatus.INVALID_ARGUMENT:
    case grpcStatus.FAILED_PRECONDITION:
    case grpcStatus.OUT_OF_RANGE:
      return 400;
    case grpcStatus.DEADLINE_EXCEEDED:
      return 504;
    case grpcStatus.NOT_FOUND:
      return 404;
    case grpcStatus.ALREADY_EXISTS:
    case grpcStatus.ABORTED:
      return 409;
    case grpcStatus.PERMISSION_DENIED:
      return 403;
    case grpcStatus.RESOURCE_EXHAUSTED:
      return 429;
    case grpcStatus.UNIMPLEMENTED:
      return 501;
    case grpcStatus.UNAVAILABLE:
      return 503;
    case grpcStatus.UNAUTHENTICATED:
      return 401;
    default:
      return 500;
  }
}

/** `grpc-message` is percent-encoded: visible ASCII without `%`, and spaces, stay as they are. */
export function encodeGrpcMessage(text: string): string {
  let out = '';
  for (const byte of Buffer.from(text))
    out += byte >= 0x20 && byte <= 0x7e && byte !== 0x25 ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  return out;
}

const unitMs: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 0.001, n: 0.000_001 };

/** `grpc-timeout` in milliseconds, at least 1 (0 would be no limit), at most what a timer can wait; undefined when it is absent or no timeout. */
export function grpcTimeoutMs(head: RequestHead): number | undefined {
  const match = /^(\d{1,8})([HMSmun])$/.exec(head.headers.get('grpc-timeout') ?? '');
  return match === null ? undefined : timerMs(Math.max(1, Math.ceil(Number(match[1]) * unitMs[match[2]!]!)));
}
