/** The identity of a workload: a service account of a namespace in a trust domain, written as a SPIFFE URI. */
export interface Identity {
  readonly trustDomain: string;
  readonly namespace: string;
  readonly serviceAccount: string;
}

export const defaultTrustDomain = 'cluster.local';

/** `spiffe://cluster.local/ns/default/sa/reviews`. */
export function spiffeUri(identity: Identity): string {
  return `spiffe://${identity.trustDomain}/ns/${identity.namespace}/sa/${identity.serviceAccount}`;
}

const pattern = /^spiffe:\/\/([a-z0-9._-]+)\/ns\/([a-z0-9.-]+)\/sa\/([a-z0-9.-]+)$/;

/** The identity in a SPIFFE URI, or undefined when it is not of the mesh's form. */
export function parseSpiffeUri(uri: string): Identity | undefined {
  const match = pattern.exec(uri);
  return match ? { trustDomain: match[1]!, namespace: match[2]!, serviceAccount: match[3]! } : undefined;
}
