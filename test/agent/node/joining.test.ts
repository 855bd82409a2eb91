/** Tokens used by hand and from a file, against a gate that answers as the test says. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ConnectionClosedError, StreamResetError } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { AgentError } from '../../../agent/error.ts'
import type { Membership } from '../../../agent/identity/membership.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { Joining, type JoiningDeps } from '../../../agent/node/joining.ts'
import { WireError } from '../../../protocols/error.ts'
import { encodeToken, type Token } from '../../../protocols/membership/token.ts'

const issuer = ephemeralNodeKey()
const self = ephemeralNodeKey()
const signal = new AbortController().signal
const silent = { debug() {}, info() {}, warn() {}, error() {} }

describe('a token that somebody hands in', () => {
  test('is shown to its issuer where the token says, with what this node would like to be called', async () => {
    const { joining, gate, dialled, enter } = parts()
    gate.join.mockImplementation(async (_token, _issuer, dial: () => Promise<unknown>) => {
      await dial()
      return enter(1)
    })
    expect(await joining.join(token(1), 'web1', signal)).toMatchObject({ name: 'network1' })
    expect(gate.join.mock.calls[0]?.[1]).toBe(issuer.peerId)
    expect(gate.join.mock.calls[0]?.[4]).toBe('web1')
    expect(dialled).toEqual([[`/ip4/192.0.2.1/tcp/7477`]])
  })

  test('is not used at all when it is none, or was made here', async () => {
    const { joining, gate } = parts()
    await expect(joining.join('home', undefined, signal)).rejects.toMatchObject({
      code: 'usage',
      message: 'this is not a token: a token begins with un1',
    })
    await expect(joining.join(token(1, self), undefined, signal)).rejects.toMatchObject({
      code: 'usage',
      message: 'this node made the token itself',
    })
    expect(gate.join).not.toHaveBeenCalled()
  })

  test('fails with the reason of the issuer, and otherwise with where it was looked for', async () => {
    const { joining, gate } = parts()
    gate.join.mockRejectedValueOnce(refusal('refused', 'the token was used already'))
    await expect(joining.join(token(1), undefined, signal)).rejects.toMatchObject({
      code: 'not-allowed',
      message: 'the token was used already',
    })
    // What this node itself has against it.
    const limit = new AgentError('limit', 'a node is in at most 16 networks', { next: 'Leave another one first.' })
    gate.join.mockRejectedValueOnce(new AgentError('not-allowed', `no connection: ${limit.message}`, { cause: limit }))
    await expect(joining.join(token(1), undefined, signal)).rejects.toBe(limit)
    // As libp2p wraps it, when there were several addresses.
    gate.join.mockRejectedValueOnce(new AggregateError([new Error('refused'), refusal('refused', 'it has expired')]))
    await expect(joining.join(token(1), undefined, signal)).rejects.toMatchObject({ code: 'not-allowed' })
    gate.join.mockRejectedValueOnce(new Error('ECONNREFUSED'))
    await expect(joining.join(token(1), undefined, signal)).rejects.toMatchObject({
      code: 'failed',
      message: 'the node that made the token cannot be reached: ECONNREFUSED',
      next: 'Is it running, and can this machine reach it at /ip4/192.0.2.1/tcp/7477?',
    })
  })

  test('is shown again when the hello was not over in time, which is no refusal; but not for ever', async () => {
    const { joining, gate, enter } = parts()
    const timeout = new AgentError('not-allowed', 'no connection', { cause: new DOMException('late', 'TimeoutError') })
    gate.join
      .mockRejectedValueOnce(refusal('timeout', 'no hello in time'))
      .mockRejectedValueOnce(timeout)
      .mockRejectedValueOnce(new ConnectionClosedError('the connection was closed'))
      .mockRejectedValueOnce(new AgentError('not-allowed', 'no connection', { cause: new StreamResetError('reset') }))
      .mockImplementationOnce(async () => enter(1))
    expect(await joining.join(token(1), undefined, signal)).toMatchObject({ name: 'network1' })
    gate.join.mockRejectedValue(refusal('closed', 'the connection ended during the hello'))
    await expect(joining.join(token(2), undefined, signal)).rejects.toMatchObject({
      code: 'failed',
      message: expect.stringContaining('cannot be reached'),
    })
    expect(gate.join).toHaveBeenCalledTimes(5 + 5)
  })

  test('whose network was left again meanwhile has not brought this node into it', async () => {
    const { joining, gate } = parts()
    gate.join.mockResolvedValue(undefined)
    await expect(joining.join(token(1), undefined, signal)).rejects.toMatchObject({ code: 'failed' })
  })

  test('lets other peers that are connected know of the membership; those that do not care do no harm', async () => {
    const { joining, gate, enter } = parts({ connected: ['one', issuer.peerId, 'two'] })
    gate.join.mockImplementation(async () => enter(1))
    gate.refresh.mockRejectedValueOnce(new Error('gone'))
    await joining.join(token(1), undefined, signal)
    await vi.waitFor(() =>
      expect(new Set(gate.refresh.mock.calls.map(([peerId]) => peerId))).toEqual(new Set(['one', 'two'])),
    )
  })
})

describe('a file of tokens', () => {
  test('has comments and empty lines; each token is used with the name of this node', async () => {
    const { joining, gate, enter, members } = parts()
    const answers = [enter.bind(undefined, 1), enter.bind(undefined, 2)]
    gate.join.mockImplementation(async () => answers.shift()?.())
    joining.useFile(file(`# ours\n\n${token(1)}\n  ${token(2)}  \n`))
    await vi.waitFor(() => expect(members.size).toBe(2))
    expect(gate.join.mock.calls.map((call) => call[4])).toEqual(['node', 'node'])
    expect(joining.warnings()).toEqual([])
  })

  test('is refused at the start when a line is no token, and says which', () => {
    const { joining, gate } = parts()
    const path = file(`# ours\nun1nonsense\n`)
    expect(() => joining.useFile(path)).toThrow(`${path}, line 2: this is not a token`)
    expect(() => joining.useFile('/nowhere/at/all')).toThrow('the file of tokens /nowhere/at/all cannot be read')
    expect(gate.join).not.toHaveBeenCalled()
  })

  test('is not needed for networks that this node is in, and needed for those where its certificate ended', async () => {
    const { joining, gate, enter, members } = parts()
    enter(1)
    enter(2, { fault: 'expired', why: 'it ended' })
    gate.join.mockImplementation(async () => enter(2))
    joining.useFile(file(`${token(1)}\n${token(2)}\n`))
    await vi.waitFor(() => expect(gate.join).toHaveBeenCalledTimes(1))
    await vi.waitFor(() => expect(members.get(idOf(2))?.fault()).toBeUndefined())
    expect(gate.join).toHaveBeenCalledTimes(1)
  })

  test('is tried again while the issuer does not answer, and a refusal is told of until it is taken back', async () => {
    const { joining, gate, enter, rests } = parts()
    gate.join
      .mockRejectedValueOnce(new Error('ECONNREFUSED'))
      .mockRejectedValueOnce(refusal('refused', 'the node that made the token cannot issue certificates now'))
      .mockImplementationOnce(async () => enter(1))
    const path = file(token(1))
    joining.useFile(path)
    await vi.waitFor(() => expect(rests).toHaveLength(1))
    expect(rests[0]?.ms).toBeLessThan(2_000)
    expect(joining.warnings()).toMatchObject([
      {
        code: 'join.failed',
        message: expect.stringContaining(`${path}, line 1 has not let this node in: the node that`),
      },
    ])
    rests[0]?.resolve()
    await vi.waitFor(() => expect(rests).toHaveLength(2))
    // Not as often as one that was not answered.
    expect(rests[1]?.ms).toBeGreaterThan(20_000)
    expect(joining.warnings()).toMatchObject([{ message: expect.stringContaining('cannot issue certificates now') }])
    rests[1]?.resolve()
    await vi.waitFor(() => expect(joining.warnings()).toEqual([]))
    expect(gate.join).toHaveBeenCalledTimes(3)
  })

  test('keeps no agent from stopping', async () => {
    const { joining, gate } = parts()
    gate.join.mockImplementation(
      (_token, _issuer, _dial, within: AbortSignal) =>
        new Promise((_resolve, reject) => within.addEventListener('abort', () => reject(within.reason as Error))),
    )
    joining.useFile(file(token(1)))
    await vi.waitFor(() => expect(gate.join).toHaveBeenCalled())
    await joining[Symbol.asyncDispose]()
    expect(joining.warnings()).toEqual([])
  })
})

function parts({ connected = [] as string[] } = {}) {
  const members = new Map<string, Membership>()
  const dialled: string[][] = []
  const gate = { join: vi.fn(), refresh: vi.fn() }
  const host = { peerId: self.peerId, connected: () => connected }
  const guests = { reach: async ({ addresses }: Token) => void dialled.push(addresses.map(String)) }
  const networks = { get: (id: string) => members.get(id) }
  const rests: { ms: number; resolve: () => void }[] = []
  const rest = (ms: number) => new Promise<void>((resolve) => rests.push({ ms, resolve }))
  const joining = new Joining({
    gate,
    host,
    guests,
    networks,
    name: 'node',
    log: silent,
    rest,
  } as unknown as JoiningDeps)
  onTestFinished(() => joining[Symbol.asyncDispose]())
  const enter = (nth: number, fault?: { fault: string; why: string }) =>
    void members.set(idOf(nth), { name: `network${nth}`, fault: () => fault } as unknown as Membership)
  return { joining, gate, members, dialled, enter, rests }
}

function token(nth: number, { publicKey } = issuer): string {
  return encodeToken({
    network: new Uint8Array(32).fill(nth),
    issuer: publicKey,
    addresses: [multiaddr('/ip4/192.0.2.1/tcp/7477')],
    secret: new Uint8Array(16).fill(nth),
    expires: Date.now() + 60_000,
  })
}

function idOf(nth: number): string {
  return Buffer.alloc(32, nth).toString('hex')
}

/** As the gate says it. */
function refusal(code: 'refused' | 'timeout' | 'closed', why: string): AgentError {
  return new AgentError('not-allowed', `no connection: ${why}`, { cause: new WireError(code, why) })
}

function file(text: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-test-'))
  onTestFinished(() => rmSync(directory, { recursive: true }))
  writeFileSync(join(directory, 'tokens'), text)
  return join(directory, 'tokens')
}
