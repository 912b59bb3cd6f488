import { findKind } from '@mizzen/api';
import { MizzenError, version as programVersion } from '@mizzen/common';
import { stringify } from 'yaml';
import { ApiClient, ApiFailure, collectionPath } from '../api-client.ts';
import { type ControlAccess, controlAccess, homeOf } from '../home.ts';
import { nameValues } from '../name-value.ts';
import { outputFormat, print, printData } from '../output.ts';
import { bindWorkload } from '../service-account-token.ts';

interface AccessOptions {
  readonly home?: string;
  readonly output?: string;
  readonly namespace?: string;
  readonly duration?: string;
  readonly once?: boolean;
  readonly workload?: string;
  readonly label?: readonly string[];
  readonly address?: readonly string[];
  readonly gateway?: boolean;
  readonly user?: string;
  readonly role?: string;
  readonly allowedNamespace?: readonly string[];
}

/** `mizzen kubeconfig`: what kubectl and other Kubernetes clients need to reach this mesh's API. */
export async function kubeconfig(options: AccessOptions): Promise<void> {
  const access = controlAccess(homeOf(options.home));
  const user = options.user ?? 'mizzen-admin';
  const token = options.user === undefined && options.role === undefined ? access.token : await accessToken(access, user, options);
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [{ name: 'mizzen', cluster: { server: access.api, 'certificate-authority-data': Buffer.from(access.rootCertificate).toString('base64') } }],
    users: [{ name: user, user: { token } }],
    contexts: [{ name: 'mizzen', context: { cluster: 'mizzen', user, namespace: options.allowedNamespace?.[0] ?? 'default' } }],
    'current-context': 'mizzen',
  };
  print(options.output === 'json' ? JSON.stringify(config, null, 2) : stringify(config));
}

/** A token of its own for somebody, who may do less than all. */
async function accessToken(access: ControlAccess, user: string, { role, allowedNamespace, duration }: AccessOptions): Promise<string> {
  const api = new ApiClient(access);
  try {
    const body = {
      user,
      role: role ?? 'viewer',
      ...(allowedNamespace?.length ? { namespaces: allowedNamespace } : {}),
      seconds: Number(duration ?? 86_400),
    };
    return ((await api.call('POST', '/mizzen/v1/access', { body })).body as { token: string }).token;
  } finally {
    api.close();
  }
}

/** `mizzen token SERVICEACCOUNT`: a bootstrap token for a workload that somebody else starts. */
export async function token(serviceAccount: string, options: AccessOptions): Promise<void> {
  const api = new ApiClient(controlAccess(homeOf(options.home)));
  try {
    const kind = findKind('', 'ServiceAccount')!;
    const namespace = options.namespace ?? 'default';
    const seconds = Number(options.duration ?? 3600);
    if (!Number.isInteger(seconds) || seconds < 600) throw new MizzenError('bad-option', '--duration is a whole number of seconds, at least 600');
    if (options.workload !== undefined) {
      const labels = { app: options.workload, ...nameValues(options.label ?? [], '--label') };
      const workload = { name: options.workload, namespace, serviceAccount, labels, isGateway: options.gateway === true, addresses: options.address ?? [] };
      if (!(await bindWorkload(api, workload, 'mizzen token')))
        process.stderr.write(`the WorkloadGroup ${namespace}/${options.workload} exists and stays as it is\n`);
    }
    const answer = await api.call('POST', `${collectionPath(kind, namespace)}/${serviceAccount}/token`, {
      body: {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        ...(options.once ? { metadata: { annotations: { 'mizzen.dev/once': 'true' } } } : {}),
        spec: { audiences: ['istio-ca'], expirationSeconds: seconds },
      },
    });
    const { status } = answer.body as { status: { token: string; expirationTimestamp: string } };
    const format = outputFormat(options.output);
    if (format === 'table') print(status.token);
    else printData(status, format);
  } catch (error) {
    if (error instanceof ApiFailure && error.status === 404)
      throw new MizzenError(
        'no-such-account',
        `there is no service account "${serviceAccount}". Create it: a v1 ServiceAccount with this name, by \`mizzen apply -f\`.`,
      );
    throw error;
  } finally {
    api.close();
  }
}

/** `mizzen version`: of this program, and of the control plane where one answers. */
export async function version(options: AccessOptions): Promise<void> {
  let server: string | undefined;
  try {
    const api = new ApiClient(controlAccess(homeOf(options.home)));
    const { gitVersion } = (await api.call('GET', '/version')).body as { gitVersion: string };
    server = gitVersion;
    api.close();
  } catch {
    server = undefined; // no mesh is running; the client's own version is an answer too
  }
  const format = outputFormat(options.output);
  if (format !== 'table') return printData({ client: programVersion, node: process.version, ...(server ? { server } : {}) }, format);
  print(`mizzen ${programVersion} on Node ${process.version}\ncontrol plane: ${server ?? 'none reachable'}`);
}
