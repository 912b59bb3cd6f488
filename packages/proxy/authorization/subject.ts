import type { RequestHead } from '../message/request-head.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import type { PeerIdentity } from '../tls/peer-identity.ts';

/** Whom and what rules are asked about: a request, or a connection whose bytes nobody looks into. */
export interface Subject {
  /** undefined: a connection. */
  readonly head: RequestHead | undefined;
  readonly info: ConnectionInfo;
  /** Who has proved who they are, by mutual TLS. */
  readonly peer: PeerIdentity | undefined;
  /** Of a request, without its query; '' of a connection. */
  readonly path: string;
  /** Where the request began, as far as hops that are trusted say so. */
  readonly remoteAddress: string;
  /** What the filter of this name has found out. */
  metadata(filter: string): unknown;
}

const nothing = () => undefined;

export function connectionSubject(info: ConnectionInfo, peer: PeerIdentity | undefined): Subject {
  return { head: undefined, info, peer, path: '', remoteAddress: info.remoteAddress, metadata: nothing };
}

/** `head` is as the connection manager has left it: x-forwarded-for is ours, or that of a peer whose word is taken. */
export function requestSubject(head: RequestHead, info: ConnectionInfo, peer: PeerIdentity | undefined, metadata: Subject['metadata']): Subject {
  return new RequestSubject(head, info, peer, metadata);
}

/** The same request, if its path is read as `path`. */
export function onPath(subject: Subject, path: string): Subject {
  const { head, info, peer, remoteAddress, metadata } = subject;
  return { head, info, peer, path, remoteAddress, metadata };
}

class RequestSubject implements Subject {
  readonly head: RequestHead;
  readonly info: ConnectionInfo;
  readonly peer: PeerIdentity | undefined;
  readonly path: string;
  readonly metadata: Subject['metadata'];

  constructor(head: RequestHead, info: ConnectionInfo, peer: PeerIdentity | undefined, metadata: Subject['metadata']) {
    this.head = head;
    this.info = info;
    this.peer = peer;
    this.metadata = metadata;
    const { target } = head;
    const end = target.indexOf('?');
    this.path = end < 0 ? target : target.slice(0, end);
  }

  get remoteAddress(): string {
    const said = this.head.headers.getJoined('x-forwarded-for');
    return said === undefined ? this.info.remoteAddress : said.slice(said.lastIndexOf(',') + 1).trim();
  }
}
