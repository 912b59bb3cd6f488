import type { Socket } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { type Logger, messageOf } from '@mizzen/common';
import { holdersOf, programHash, type SocketHolder, socketPeer } from './processes.ts';
import { userId, type WorkloadEntry } from './workload-entries.ts';

/** SPIFFE ids, or why there are none. */
export type Identities = readonly string[] | ConnectError;

/** What was proved of one connection, as long as it holds. */
export interface Attestation {
  /** Verifies the proof again, against the process as it is now. Never rejects. */
  verify(): Promise<Identities>;
}

/** Attests the process at the other end of a connection to the Workload API. */
export interface WorkloadAttestor {
  /** Never rejects. What is sent on the socket has to wait until it resolves. */
  attest(socket: Socket): Promise<Attestation>;
}

const settled = (identities: Identities): Attestation => ({ verify: async () => identities });

/** A process that can open the socket is the workload: its folder is for its user alone. */
export function onlyWorkload(spiffeId: string): WorkloadAttestor {
  return { attest: async () => settled([spiffeId]) };
}

export interface ProcessAttestorOptions {
  readonly trustDomain: string;
  readonly entries: readonly WorkloadEntry[];
  readonly logger: Logger;
}

/** Looked at side by side: each costs a process. */
const maxAtOnce = 4;
const maxWaiting = 200;

/** Programs pass descriptors to each other all the time, and receive them within milliseconds: those that still wait at the last look count as a hidden holder. */
const maxLooks = 5;
const betweenLooksMs = 40;

/** Tells the processes of a machine apart by what the kernel says of them: user, group, program. */
export class ProcessAttestor implements WorkloadAttestor {
  readonly #options: ProcessAttestorOptions;
  readonly #waiting: (() => void)[];
  #atOnce: number;

  constructor(options: ProcessAttestorOptions) {
    this.#options = options;
    this.#waiting = [];
    this.#atOnce = 0;
  }

  async attest(socket: Socket): Promise<Attestation> {
    if (this.#waiting.length >= maxWaiting) return settled(new ConnectError('too many connections at once: try again', Code.ResourceExhausted));
    if (this.#atOnce >= maxAtOnce) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    this.#atOnce++;
    try {
      if (socket.destroyed) return settled(noIdentity('the connection is closed'));
      const peer = await socketPeer(socket);
      return peer === undefined ? settled(noIdentity('the connection is closed')) : await this.#attestPeer(peer);
    } catch (error) {
      this.#options.logger.warn(messageOf(error));
      return settled(new ConnectError(messageOf(error), Code.Unavailable));
    } finally {
      this.#atOnce--;
      this.#waiting.shift()?.();
    }
  }

  async #attestPeer(peer: number): Promise<Attestation> {
    const proved = await provenHolders(peer);
    if (proved instanceof ConnectError) return settled(proved);
    const each = await Promise.all(proved.map((holder) => this.#entriesFor(holder)));
    // Every process that has the socket can read what is sent to it.
    const [first = [], ...others] = each.map(({ identities }) => identities);
    const shared = first.filter((id) => others.every((ids) => ids.includes(id)));
    const shown = proved.map(({ facts: { pid, uid, path } }) => `pid ${pid}, uid ${uid}, ${path}`).join('; ');
    this.#options.logger.info(shared.length > 0 ? 'process attested' : 'process has no identity', { process: shown, identities: shared.join(', ') });
    const why = [...new Set(each.flatMap(({ refusals }) => refusals))].map((refusal) => ` (${refusal})`).join('');
    if (shared.length === 0) return settled(noIdentity(`no entry is for it: ${shown}${why}`));
    const attestation = new PeerAttestation({ peer, proved, identities: shared, logger: this.#options.logger });
    // Computing a hash takes time: the process may have been replaced.
    const identities = await attestation.verify();
    return identities instanceof ConnectError ? settled(identities) : attestation;
  }

  async #entriesFor({ facts, closesOnExec }: SocketHolder): Promise<{ identities: string[]; refusals: string[] }> {
    const { entries, trustDomain } = this.#options;
    const found = new Set<string>();
    const refusals: string[] = [];
    let hash: string | undefined;
    for (const { namespace, serviceAccount, selectors } of entries) {
      const { uid, gid, pid, user, path, sha256 } = selectors;
      if (uid !== undefined && uid !== facts.uid) continue;
      if (user !== undefined && userId(user) !== facts.uid) continue;
      if (gid !== undefined && gid !== facts.gid) continue;
      if (pid !== undefined && pid !== facts.pid) continue;
      if (path !== undefined && path !== facts.path) continue;
      if (sha256 !== undefined && sha256 !== (hash ??= await programHash(facts.pid))) continue;
      if (path !== undefined && sha256 === undefined && !facts.isPathProven) {
        refusals.push('its path proves nothing in another mount or user namespace: select it by sha256');
        continue;
      }
      if ((path !== undefined || sha256 !== undefined) && !closesOnExec) {
        refusals.push('another program may have opened its connection: open it with SOCK_CLOEXEC');
        continue;
      }
      found.add(`spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`);
    }
    return { identities: [...found], refusals };
  }
}

/** The identities of one connection, while the processes that hold it are those that were attested. */
class PeerAttestation implements Attestation {
  readonly #peer: number;
  readonly #proved: readonly SocketHolder[];
  readonly #identities: readonly string[];
  readonly #logger: Logger;
  /** For good: a process that has handed its connection on cannot take it back. */
  #refusal: ConnectError | undefined;

  constructor(options: { peer: number; proved: readonly SocketHolder[]; identities: readonly string[]; logger: Logger }) {
    this.#peer = options.peer;
    this.#proved = options.proved;
    this.#identities = options.identities;
    this.#logger = options.logger;
    this.#refusal = undefined;
  }

  async verify(): Promise<Identities> {
    if (this.#refusal !== undefined) return this.#refusal;
    let now: readonly SocketHolder[] | ConnectError;
    try {
      now = await provenHolders(this.#peer);
    } catch (error) {
      return new ConnectError(messageOf(error), Code.Unavailable);
    }
    if (now instanceof ConnectError) return now;
    // A fork of an attested process is as good as it: same user, same program. An exec is not.
    const allowed = new Set(this.#proved.map(withoutPid));
    const remains = now.some((holder) => this.#proved.some((one) => keyOf(one) === keyOf(holder)));
    if (remains && now.every((holder) => allowed.has(withoutPid(holder)))) return this.#identities;
    this.#refusal = noIdentity('the process or program that holds the connection has changed since it was attested');
    this.#logger.warn('connection to the Workload API refused', { reason: this.#refusal.rawMessage, identities: this.#identities.join(', ') });
    return this.#refusal;
  }
}

const keyOf = (holder: SocketHolder) => JSON.stringify(holder);
const withoutPid = ({ facts, ...holder }: SocketHolder) => JSON.stringify({ ...holder, ...facts, pid: 0, startedAt: '' });

/** The holders of a socket, where the kernel shows all of them and what each of them is. */
async function provenHolders(peer: number): Promise<readonly SocketHolder[] | ConnectError> {
  for (let look = 1; ; look++) {
    const { holders, hasUnreadHolder, inFlight } = await holdersOf(peer);
    if (holders.length === 0 && !hasUnreadHolder)
      return noIdentity('no process that this agent can see holds the connection: it has ended, its descriptor is in flight, or the agent must run as root');
    for (const { facts, isOfCreator } of holders) {
      const shown = `pid ${facts.pid}, uid ${facts.uid}, ${facts.path}`;
      if (!facts.hasOneUser) return noIdentity(`its real, effective, saved and filesystem ids differ: ${shown}`);
      if (!isOfCreator) return noIdentity(`another user or group opened the connection: ${shown}`);
    }
    // Root and the holder's own user: sockets of other users do not count, or each of them could stop the whole machine.
    const hidden = inFlight.find(({ uids }) => uids.some((uid) => uid === 0 || holders.some(({ facts }) => facts.uid === uid)));
    if (hidden === undefined && !hasUnreadHolder) return holders;
    if (look === maxLooks)
      return noIdentity(
        hidden === undefined
          ? 'a process that holds the connection cannot be read'
          : `a descriptor in flight may be the connection: a Unix socket of pid ${hidden.pid} has descriptors that were not received`,
      );
    await setTimeout(betweenLooksMs);
  }
}

const noIdentity = (why: string) => new ConnectError(`no identity issued: ${why}`, Code.PermissionDenied);
