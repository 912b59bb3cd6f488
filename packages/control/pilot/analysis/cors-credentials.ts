import { isPlainObject, type Resource } from '@mizzen/api';

/** CORS policies by which any site acts with the credentials of a signed-in user: legal, and seldom meant. */
export function corsWarnings({ kind, spec }: Resource): string[] {
  return ['VirtualService', 'HTTPRoute', 'Api'].includes(kind) ? policiesIn(spec, 'spec').map(describe) : [];
}

const describe = (path: string) =>
  `${path}: every site may make calls with the credentials of its visitors, since all origins are allowed and allowCredentials is true. Name the origins.`;

function policiesIn(value: unknown, path: string): string[] {
  if (Array.isArray(value)) return value.flatMap((entry, i) => policiesIn(entry, `${path}[${i}]`));
  if (!isPlainObject(value)) return [];
  return Object.entries(value).flatMap(([key, entry]) => {
    const below = `${path}.${key}`;
    return (key === 'cors' || key === 'corsPolicy') && allowsAllWithCredentials(entry) ? [below] : policiesIn(entry, below);
  });
}

function allowsAllWithCredentials(policy: unknown): boolean {
  if (!isPlainObject(policy) || policy['allowCredentials'] !== true) return false;
  const origins = [policy['allowOrigins'], policy['allowOrigin']].flatMap((list): unknown[] => (Array.isArray(list) ? list : []));
  return origins.some((origin) =>
    isPlainObject(origin)
      ? origin['prefix'] === '' || origin['prefix'] === 'http' || (typeof origin['regex'] === 'string' && /^\^?\.[*+]\$?$/.test(origin['regex']))
      : origin === '*',
  );
}
