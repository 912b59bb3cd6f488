import { type Kind, kinds, preferredApiVersion, schemaHasStatus } from '@mizzen/api';

/** The discovery documents of the Kubernetes API: which groups, versions and resources there are. */
const verbs = ['create', 'delete', 'deletecollection', 'get', 'list', 'patch', 'update', 'watch'];

export const groups: readonly string[] = [...new Set(kinds.map((kind) => kind.group))].filter((group) => group !== '');

function versionsOfGroup(group: string): string[] {
  return [...new Set(kinds.filter((kind) => kind.group === group).flatMap((kind) => kind.versions))].sort(byMaturity);
}

/** v1 before v1beta1 before v1alpha3, and newer before older, as Kubernetes sorts them. */
export function byMaturity(a: string, b: string): number {
  const rank = (version: string) => {
    const [, major, stage, minor] = /^v(\d+)(alpha|beta)?(\d+)?$/.exec(version) ?? [];
    return (stage === undefined ? 2 : stage === 'beta' ? 1 : 0) * 1_000_000 + Number(major) * 1000 + Number(minor ?? 0);
  };
  return rank(b) - rank(a);
}

export function apiVersions(): unknown {
  return { kind: 'APIVersions', versions: ['v1'], serverAddressByClientCIDRs: [] };
}

export function apiGroup(group: string): unknown {
  const versions = versionsOfGroup(group).map((version) => ({ groupVersion: `${group}/${version}`, version }));
  return { kind: 'APIGroup', apiVersion: 'v1', name: group, versions, preferredVersion: versions[0] };
}

export function apiGroupList(): unknown {
  return { kind: 'APIGroupList', apiVersion: 'v1', groups: groups.map(apiGroup) };
}

export function apiResourceList(group: string, version: string): unknown | undefined {
  const served = kinds.filter((kind) => kind.group === group && kind.versions.includes(version));
  if (served.length === 0) return undefined;
  return {
    kind: 'APIResourceList',
    apiVersion: 'v1',
    groupVersion: group ? `${group}/${version}` : version,
    resources: served.flatMap((kind) => [
      {
        name: kind.plural,
        singularName: kind.singular,
        namespaced: kind.isNamespaced,
        kind: kind.kind,
        verbs,
        shortNames: kind.shortNames,
        ...(kind.group.includes('istio.io') ? { categories: ['istio-io'] } : kind.group === 'mizzen.dev' ? { categories: ['mizzen'] } : {}),
        storageVersionHash: '',
      },
      ...(schemaHasStatus(kind)
        ? [{ name: `${kind.plural}/status`, singularName: '', namespaced: kind.isNamespaced, kind: kind.kind, verbs: ['get', 'patch', 'update'] }]
        : []),
      ...(kind.kind === 'ServiceAccount'
        ? [
            {
              name: 'serviceaccounts/token',
              singularName: '',
              namespaced: true,
              group: 'authentication.k8s.io',
              version: 'v1',
              kind: 'TokenRequest',
              verbs: ['create'],
            },
          ]
        : []),
    ]),
  };
}

/** The `apiVersion` under which an object is shown to a client that asked for `version`. */
export function apiVersionFor(kind: Kind, version: string): string {
  return kind.versions.includes(version) ? (kind.group ? `${kind.group}/${version}` : version) : preferredApiVersion(kind);
}
