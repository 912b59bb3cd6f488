import { describeOrigin } from '@mizzen/common';
import { keySourceOf } from '../security/request-authentication.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import type { Finding } from './finding.ts';

/** Issuers whose keys cannot be fetched: their tokens are refused, or checked with the keys that were fetched last. */
export function keySetFindings(snapshot: MeshSnapshot): Finding[] {
  return snapshot.requestAuthentications.flatMap((policy) =>
    (policy.spec.jwtRules ?? []).flatMap((rule, i): Finding[] => {
      const source = keySourceOf(rule);
      const problem = source && snapshot.keySets.problemOf(source);
      if (source === undefined || problem === undefined) return [];
      const object = `RequestAuthentication ${policy.namespace}/${policy.name}`;
      const effect = snapshot.keySets.keysOf(source) === undefined ? 'Its tokens are refused until they can.' : 'Those that were fetched before are used.';
      const path = `spec.jwtRules[${i}]`;
      return [
        {
          code: 'MZ0009',
          level: 'warning',
          object,
          path,
          place: policy.origin.source === 'file' ? describeOrigin(policy.origin, path) : '',
          message: `${object}: the keys of issuer ${JSON.stringify(source.issuer)} cannot be fetched: ${problem}. ${effect}`,
        },
      ];
    }),
  );
}
