import type { Socket } from 'node:net';
import { Code, ConnectError } from '@connectrpc/connect';
import { type Logger, messageOf } from '@mizzen/common';
import { holdersOf, type ProcessFacts, programHash, socketPeer } from './processes.ts';
import { userId, type WorkloadEntry } from './workload-entries.ts';

/** SPIFFE ids, or why there are none. */
export type Identities = readonly string[] | ConnectError;

/** Finds out who is at the other end of a connection to the Workload API. */
export interface WorkloadAttestor {
  /** Never rejects. What is sent on the socket has to wait until it resolves. */
  identify(socket: Socket): Promise<Identities>;
}

/** Who may open the socket is the workload: its folder is for its user alone. */
export function onlyWorkload(spiffeId: string): WorkloadAttestor {
  return { identify: async () => [spiffeId] };
}

export interface ProcessAttestorOptions {
  readonly trustDomain: string;
  readonly entries: readonly WorkloadEntry[];
  readonly logger: Logger;
}

/** Looked at side by side: each costs a process. */
const maxAtOnce = 4;
const maxWaiting = 200;

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

  async identify(socket: Socket): Promise<Identities> {
    if (this.#waiting.length >= maxWaiting) return new ConnectError('too many connections at once: try again', Code.ResourceExhausted);
    if (this.#atOnce >= maxAtOnce) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    this.#atOnce++;
    try {
      if (socket.destroyed) return nobody('it is gone');
      const peer = await socketPeer(socket);
      return peer === undefined ? nobody('it is gone') : await this.#identitiesBehind(peer);
    } catch (error) {
      this.#options.logger.warn(messageOf(error));
      return new ConnectError(messageOf(error), Code.Unavailable);
    } finally {
      this.#atOnce--;
      this.#waiting.shift()?.();
    }
  }

  async #identitiesBehind(peer: number): Promise<Identities> {
    const before = holdersOf(peer);
    if (before.length === 0) return nobody('its process is gone, or another user’s whom this agent may not look at (run it as root)');
    const each = await Promise.all(before.map((facts) => this.#entriesFor(facts)));
    // Another process that has taken the place of one of them meanwhile would not have the socket.
    const after = holdersOf(peer);
    if (JSON.stringify(before) !== JSON.stringify(after)) return nobody('its process has changed meanwhile');
    // Whoever has the socket reads what is sent to it.
    const shared = each[0]!.filter((id) => each.every((ids) => ids.includes(id)));
    const shown = before.map(({ pid, uid, path }) => `pid ${pid}, uid ${uid}, ${path}`).join('; ');
    this.#options.logger.info(shared.length > 0 ? 'a process has proved who it is' : 'a process has no identity', {
      process: shown,
      identities: shared.join(', '),
    });
    return shared.length > 0 ? shared : nobody(`no entry is for it: ${shown}`);
  }

  async #entriesFor(facts: ProcessFacts): Promise<string[]> {
    const { entries, trustDomain } = this.#options;
    const found = new Set<string>();
    let hash: string | undefined;
    for (const { namespace, serviceAccount, selectors } of entries) {
      const { uid, gid, pid, user, path, sha256 } = selectors;
      if (uid !== undefined && uid !== facts.uid) continue;
      if (user !== undefined && userId(user) !== facts.uid) continue;
      if (gid !== undefined && gid !== facts.gid) continue;
      if (pid !== undefined && pid !== facts.pid) continue;
      if (path !== undefined && path !== facts.path) continue;
      if (sha256 !== undefined && sha256 !== (hash ??= await programHash(facts.pid))) continue;
      found.add(`spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`);
    }
    return [...found];
  }
}

const nobody = (why: string) => new ConnectError(`no identity issued: ${why}`, Code.PermissionDenied);
