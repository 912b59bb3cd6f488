import type { ResponseHead } from '../message/response-head.ts';
import type { RetryPolicy } from '../route/route.ts';
import type { UpstreamFailure } from '../upstream/upstream-stream.ts';

/** Whether an answer is one that the policy would rather have again (envoy "x-envoy-retry-on", "x-envoy-retry-grpc-on"). */
export function isRetriableAnswer(head: ResponseHead, retry: RetryPolicy, isGrpc: boolean): boolean {
  const { status } = head;
  // Whoever limits rates does not want to be asked again, unless the policy says so.
  if (head.headers.has('x-envoy-ratelimited')) return retry.onRateLimited;
  if (retry.answers.some((answer) => answer.matches(head.headers))) return true;
  if (retry.statusCodes.has(status)) return true;
  if (status >= 400)
    return (retry.on5xx && status >= 500) || (retry.onGatewayError && status >= 502 && status <= 504) || (retry.onRetriable4xx && status === 409);
  // gRPC says in the head that it has failed when there is nothing else to say; a status in the trailers comes too late to try again.
  if (!isGrpc || retry.grpcStatuses.size === 0) return false;
  const code = head.headers.get('grpc-status');
  return code !== undefined && retry.grpcStatuses.has(code);
}

/** `mayRepeat`: nothing can have happened that must not happen twice. */
export function isRetriableFailure(failure: UpstreamFailure, retry: RetryPolicy, mayRepeat: boolean): boolean {
  if (failure.kind === 'connect' || failure.kind === 'connectTimeout') return retry.onConnectFailure;
  if (retry.onReset || (failure.kind === 'refused' && retry.onRefusedStream)) return true;
  return retry.onResetBeforeRequest && failure.beforeResponse && mayRepeat;
}
