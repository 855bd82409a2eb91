/** What identity promises about the disk: whenever the process is killed, what was told as done is done, and no network is half there. */
import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it, onTestFinished } from 'vitest'
import { Invitations } from '../../../agent/identity/invitations.ts'
import { Issuer } from '../../../agent/identity/issuing.ts'
import { Networks } from '../../../agent/identity/networks.ts'
import { loadOrMakeNodeKey } from '../../../agent/identity/node-key.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { makeKey } from '../../protocols/membership/people.ts'
import { keptLog } from '../catalog/catalog.ts'

const FOUNDER = fileURLToPath(new URL('./killed-founder.ts', import.meta.url))
/** Each takes about a second. */
const KILLS = 8

it('after kill -9 at any moment each network is whole or gone, and no token is used twice', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-killed-'))
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
  const said = new Map<string, string[]>()
  const uses: string[][] = []
  for (let run = 0; run < KILLS; run++) {
    for (const line of await killedAfter(directory, 40 + run * 23)) {
      const [what = '', id = '', ...rest] = line.split(' ')
      said.set(id, [...(said.get(id) ?? []), [what, ...rest].join(' ')])
      if (what === 'used') uses.push([id, ...rest])
    }
    const { networks, invitations, log, db } = opened(directory)
    const here = networks.list()
    expect(networks.orphans).toEqual([])
    expect(log.entries).toEqual([])
    expect(readdirSync(join(directory, 'networks')).toSorted()).toEqual(here.map(({ id }) => `${id}.root`).toSorted())
    for (const net of here) {
      expect(net.fault()).toBeUndefined()
      expect(net.can('issue')).toBeDefined()
      expect(said.get(net.id) ?? []).not.toContain('left')
    }
    for (const [id, words] of said) {
      const net = networks.get(id)
      // Whoever began to leave when the kill came may be gone, or not.
      if (net === undefined) expect(words).toContain('leaving')
      if (net === undefined) continue
      for (const word of words.filter((one) => one.startsWith('revoked')))
        expect(net.revocations.isRevoked(Buffer.from(word.split(' ')[1] ?? '', 'hex'))).toBe(true)
      if (words.includes('policy')) expect(net.policy?.statement.version).toBe(2)
    }
    for (const [id = '', token = '', guest = ''] of uses) {
      const [tokenBytes, guestBytes] = [Buffer.from(token, 'hex'), Buffer.from(guest, 'hex')]
      if (networks.get(id) === undefined) continue
      expect(invitations.redeem(tokenBytes, makeKey().publicKey)).toBe('used-up')
      expect(invitations.redeem(tokenBytes, guestBytes)).toHaveProperty('chain')
    }
    db.close()
  }
  expect(said.size).toBeGreaterThan(KILLS)
}, 60_000)

function opened(directory: string) {
  const db = openDatabase(join(directory, 'state.db'))
  const log = keptLog()
  const key = loadOrMakeNodeKey(join(directory, 'node.key'))
  const networks = new Networks({ db, directory: join(directory, 'networks'), key, log })
  return { db, log, networks, invitations: new Invitations({ db, networks, issuer: new Issuer({ db }) }) }
}

/** Runs the founder, kills it after its first word and that many milliseconds, and gives back the whole lines that it had printed. */
async function killedAfter(directory: string, ms: number): Promise<string[]> {
  const founder = spawn(process.execPath, [FOUNDER, directory], { stdio: ['ignore', 'pipe', 'inherit'] })
  let printed = ''
  founder.stdout.setEncoding('utf8').on('data', (text: string) => {
    printed += text
  })
  founder.stdout.once('data', () => setTimeout(() => founder.kill('SIGKILL'), ms))
  await new Promise((resolve) => founder.once('close', resolve))
  expect(founder.signalCode).toBe('SIGKILL')
  return printed.split('\n').slice(0, -1)
}
