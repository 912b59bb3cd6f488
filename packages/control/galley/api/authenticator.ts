import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { isPlainObject } from '@mizzen/api';
import { MizzenError, messageOf } from '@mizzen/common';
import type { PeerValidity } from '@mizzen/common/peer-validity';
import { parseSpiffeUri, spiffeUri } from '../../citadel/spiffe-identity.ts';
import { uriNamesOf } from '../../citadel/subject-alt-names.ts';
import { ApiError } from '../api-error.ts';
import type { ConfigStore, StoredResource } from '../config-store.ts';
import { type AccessBindings, accessConfigMap, readAccessBindings } from './access-bindings.ts';
import { type Caller, type Role, roles } from './access-control.ts';
import type { HeldRole } from './escalation.ts';

export interface AuthenticatorOptions {
  /** The bearer token that gives full access. */
  readonly adminToken: string;
  /** Whose a token of the API is. Throws MizzenError. */
  readonly verifyToken: (token: string) => Promise<{ readonly name: string; readonly role: string; readonly namespaces: readonly string[] | undefined }>;
  readonly store: ConfigStore;
  /** Of client certificates. */
  readonly validity: Pick<PeerValidity, 'problemOf'>;
}

const digest = (text: string) => createHash('sha256').update(text).digest();

/** Finds out who calls the API: by a bearer token, or by a client certificate of the mesh that a role is bound to. */
export class Authenticator {
  readonly #options: AuthenticatorOptions;
  readonly #adminDigest: Buffer;
  /** The bindings as they were read from one version of the ConfigMap. */
  #read: { readonly from: StoredResource; readonly content: AccessBindings } | undefined;

  constructor(options: AuthenticatorOptions) {
    this.#options = options;
    this.#adminDigest = digest(options.adminToken);
    this.#read = undefined;
  }

  /** Throws ApiError 401. */
  async callerOf(request: IncomingMessage): Promise<Caller> {
    const [scheme, token = ''] = (request.headers.authorization ?? '').split(' ');
    if (scheme?.toLowerCase() === 'bearer' && token !== '') {
      if (timingSafeEqual(digest(token), this.#adminDigest)) return { name: 'admin', role: 'admin', namespaces: undefined, by: 'admin token' };
      return this.#byToken(token);
    }
    const caller = await this.#byCertificate(request.socket as TLSSocket);
    if (caller !== undefined) return caller;
    throw unauthorized('the token is missing or wrong. `mizzen kubeconfig` prints a configuration that holds the right one.');
  }

  async #byToken(token: string): Promise<Caller> {
    try {
      const { name, role, namespaces } = await this.#options.verifyToken(token);
      return { name, role: readRole(role), namespaces, by: 'token' };
    } catch (error) {
      if (!(error instanceof MizzenError)) throw error;
      throw unauthorized(error.message);
    }
  }

  async #byCertificate(socket: TLSSocket): Promise<Caller | undefined> {
    const certificate = socket.authorized ? socket.getPeerX509Certificate?.() : undefined;
    const problem = certificate && this.#options.validity.problemOf(certificate);
    if (problem !== undefined) throw unauthorized(problem);
    const uris = certificate ? uriNamesOf(certificate.subjectAltName) : undefined;
    const identity = uris?.length === 1 ? parseSpiffeUri(uris[0]!) : undefined;
    if (identity === undefined) return undefined;
    const name = spiffeUri(identity);
    const binding = (await this.#bindings()).find(({ subject }) => subject === name);
    if (binding === undefined)
      throw unauthorized(`no role is bound to ${name}: an admin binds one in the ConfigMap ${accessConfigMap.namespace}/${accessConfigMap.name}.`);
    return { name, role: binding.role, namespaces: binding.namespaces, by: 'certificate' };
  }

  /** The roles that service accounts of this trust domain hold by the access bindings. */
  async heldRoles(): Promise<HeldRole[]> {
    return (await this.#bindings()).flatMap(({ subject, role, namespaces }) => {
      const identity = parseSpiffeUri(subject);
      return identity === undefined ? [] : [{ namespace: identity.namespace, serviceAccount: identity.serviceAccount, role, namespaces }];
    });
  }

  async #bindings(): Promise<AccessBindings['bindings']> {
    const stored = await this.#options.store.get({ group: '', kind: 'ConfigMap', ...accessConfigMap });
    const text = isPlainObject(stored?.resource['data']) ? stored.resource['data']['bindings'] : undefined;
    if (stored === undefined || typeof text !== 'string') return [];
    if (this.#read?.from === stored) return this.#read.content.bindings;
    try {
      const content = readAccessBindings(text);
      this.#read = { from: stored, content };
      return content.bindings;
    } catch (error) {
      // Text that cannot be read grants nothing.
      throw unauthorized(`the bindings in the ConfigMap ${accessConfigMap.namespace}/${accessConfigMap.name} cannot be read: ${messageOf(error)}`);
    }
  }
}

function readRole(text: string): Role {
  const role = roles.find((one) => one === text);
  if (role === undefined) throw new MizzenError('unknown-role', `${JSON.stringify(text)} is no role: ${roles.join(', ')}`);
  return role;
}

const unauthorized = (why: string) => new ApiError(401, 'Unauthorized', `Unauthorized: ${why}`);
