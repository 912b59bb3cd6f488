import { timingSafeEqual } from 'node:crypto';
import { MizzenError } from '@mizzen/common';

/** The header, or gRPC metadata, that carries Dapr's API token (docs.dapr.io, "Enable API token authentication"). */
export const apiTokenHeader = 'dapr-api-token';

/** Fields that the sidecar sends to the application with every call. */
export type AppFields = readonly (readonly [string, string])[];

/** `token`: APP_API_TOKEN of the sidecar; undefined or empty: none. By it the application knows its sidecar. Throws MizzenError for what no header can hold. */
export function appFieldsOf(token: string | undefined): AppFields {
  if (token === undefined || token === '') return [];
  if (!/^[\x21-\x7e]+$/.test(token)) throw new MizzenError('invalid-option', 'APP_API_TOKEN must be visible ASCII characters without blanks');
  return [[apiTokenHeader, token]];
}

/** Whether a caller may use the local API. `expected`: DAPR_API_TOKEN of the sidecar; undefined or empty: any local program may. */
export function hasApiToken(expected: string | undefined, presented: string | null | undefined): boolean {
  if (expected === undefined || expected === '') return true;
  const [one, other] = [Buffer.from(expected), Buffer.from(presented ?? '')];
  return one.length === other.length && timingSafeEqual(one, other);
}
