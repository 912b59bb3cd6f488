import type { FederationStatus } from '../../citadel/trust-bundles.ts';
import type { Finding } from './finding.ts';

/** Bundles of other trust domains that are refused or cannot be fetched: the last good one of each stays in effect. */
export function federationFindings(statuses: readonly FederationStatus[]): Finding[] {
  return statuses.flatMap(({ trustDomain, url, problem }): Finding[] =>
    problem === undefined
      ? []
      : [
          {
            code: 'MZ0020',
            level: 'error',
            object: `TrustDomain ${trustDomain}`,
            path: '',
            place: '',
            message: `TrustDomain ${trustDomain}: the bundle at ${url} is not used: ${problem}.`,
          },
        ],
  );
}
