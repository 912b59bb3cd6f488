import { isPlainObject } from '@mizzen/api';
import { MizzenError, parseBool } from '@mizzen/common';
import { badRequest } from '../api-error.ts';

/** What the bodies of TokenRequest and TokenReview (authentication.k8s.io/v1) ask for. */

/** On a TokenRequest: the token is good for one certificate. */
const onceAnnotation = 'mizzen.dev/once';
/** Of tokens that carry a role: no service account's token is for it. */
const apiAudience = 'mizzen-api';

const specOf = (body: unknown) => (isPlainObject(body) && isPlainObject(body['spec']) ? body['spec'] : {});
const audiencesOf = (spec: Readonly<Record<string, unknown>>) => (Array.isArray(spec['audiences']) ? spec['audiences'].map(String) : []);

/** Throws ApiError. */
export function readTokenRequest(body: unknown): { readonly seconds: number; readonly audiences: readonly string[]; readonly isOnce: boolean } {
  const spec = specOf(body);
  const given = Number(spec['expirationSeconds'] ?? 3600);
  if (Number.isNaN(given)) throw badRequest('spec.expirationSeconds must be a number');
  const seconds = Math.min(Math.max(given, 600), 365 * 86_400);
  const audiences = audiencesOf(spec);
  if (audiences.includes(apiAudience)) throw badRequest(`spec.audiences: tokens for ${apiAudience} are made by an admin, with \`mizzen kubeconfig --user\``);
  const annotations = isPlainObject(body) && isPlainObject(body['metadata']) ? body['metadata']['annotations'] : undefined;
  const onceText = isPlainObject(annotations) ? (annotations[onceAnnotation] ?? 'false') : 'false';
  const isOnce = typeof onceText === 'string' ? parseBool(onceText) : undefined;
  if (isOnce === undefined) throw badRequest(`the annotation ${onceAnnotation} must be "true" or "false"`);
  return { seconds, audiences, isOnce };
}

/** Throws ApiError. */
export function readTokenReview(body: unknown): { readonly token: string; readonly audiences: readonly string[] } {
  const spec = specOf(body);
  const { token } = spec;
  if (typeof token !== 'string') throw badRequest('spec.token is needed');
  return { token, audiences: audiencesOf(spec) };
}

/** The status of a TokenReview. `review` resolves to the user name, and throws MizzenError for a token that proves nothing. */
export function reviewStatus(review: (token: string, audience: string | undefined) => Promise<string>, token: string, audience: string | undefined) {
  return review(token, audience).then(
    (username) => ({
      authenticated: true,
      user: { username, groups: ['system:serviceaccounts', 'system:authenticated'] },
      audiences: audience === undefined ? [] : [audience],
    }),
    (error: unknown) => {
      if (error instanceof MizzenError) return { authenticated: false, error: error.message };
      throw error;
    },
  );
}
