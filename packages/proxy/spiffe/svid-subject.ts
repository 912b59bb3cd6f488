import { parseSpiffeId } from '@mizzen/common';

/** Whether the subject of a JWT-SVID is a workload of the trust domain whose keys are at hand (JWT-SVID.md of the SPIFFE standards, section 3.1). */
export function isWorkloadOf(trustDomain: string, subject: string): boolean {
  const id = parseSpiffeId(subject);
  return id !== undefined && id.trustDomain === trustDomain && id.segments.length > 0;
}
