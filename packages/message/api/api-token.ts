import { timingSafeEqual } from 'node:crypto';

/** The header, or gRPC metadata, that carries Dapr's API token (docs.dapr.io, "Enable API token authentication"). */
export const apiTokenHeader = 'dapr-api-token';

/** Whether a caller may use the local API. `expected`: DAPR_API_TOKEN of the sidecar; undefined or empty: any local program may. */
export function hasApiToken(expected: string | undefined, presented: string | null | undefined): boolean {
  if (expected === undefined || expected === '') return true;
  const [one, other] = [Buffer.from(expected), Buffer.from(presented ?? '')];
  return one.length === other.length && timingSafeEqual(one, other);
}
