/** The root key on its way off the node and back: an age file that other tools open, and nobody without the passphrase. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { armor, Decrypter, Encrypter } from 'age-encryption'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { AgentError } from '../../../agent/error.ts'
import { openRoot } from '../../../agent/identity/root-export.ts'
import { hasAge, runAge } from '../../age.ts'
import { makeFounder, makeHome, QUICK } from './homes.ts'

const PASSPHRASE = 'burst swarm slender curve'

async function exported() {
  const founder = makeFounder()
  return { ...founder, armored: await founder.networks.exportRoot('lab', PASSPHRASE, QUICK) }
}

describe('an exported root key', () => {
  it('can leave the node and come back', async () => {
    const { networks, net, armored, restart, directory } = await exported()
    expect(armored).toMatch(/^-----BEGIN AGE ENCRYPTED FILE-----\n/)
    expect(net.rootKey).toBe('exported')
    const heard: string[] = []
    net.onChange((what) => void heard.push(what))
    networks.removeRoot('lab')
    expect(heard).toEqual(['rights'])
    expect(net.rootKey).toBe('absent')
    for (const right of ['issue', 'revoke', 'policy'] as const) expect(net.can(right)).toBeUndefined()
    const again = restart()
    expect(again.networks.find('lab').rootKey).toBe('absent')
    expect(() => again.networks.removeRoot('lab')).toThrow(expect.objectContaining({ code: 'not-found' }))
    await expect(again.networks.exportRoot('lab', PASSPHRASE)).rejects.toMatchObject({ code: 'not-found' })
    await again.networks.importRoot('lab', armored, PASSPHRASE)
    await again.networks.importRoot('lab', armored, PASSPHRASE)
    expect(again.networks.find('lab').rootKey).toBe('exported')
    expect(again.networks.find('lab').can('issue')).toBeDefined()
    const second = again.restart()
    expect(second.networks.find('lab').rootKey).toBe('exported')
    // One that cannot be used makes room.
    const path = join(directory, 'networks', `${net.id}.root`)
    writeFileSync(path, 'broken')
    const third = second.restart()
    await third.networks.importRoot('lab', armored, PASSPHRASE)
    expect(third.restart().networks.find('lab').can('issue')).toBeDefined()
    expect(readFileSync(`${path}.unusable`, 'utf8')).toBe('broken')
  })

  it('lets the network be left; the only copy does not, and cannot be removed', async () => {
    const { networks } = await exported()
    networks.leave('lab')
    const other = makeFounder()
    expect(() => other.networks.removeRoot('lab')).toThrow(expect.objectContaining({ code: 'usage' }))
  })

  it('brings a new node into the network when all others are lost', async () => {
    const { net, armored } = await exported()
    const fresh = makeHome()
    const restored = await fresh.networks.restore(armored, PASSPHRASE, { memberName: 'New box' })
    expect(restored).toMatchObject({ id: net.id, name: 'lab', rootKey: 'exported' })
    expect(restored.secret).toEqual(net.secret)
    expect(restored.self.name).toBe('new-box')
    expect(restored.fault()).toBeUndefined()
    await expect(fresh.networks.restore(armored, PASSPHRASE, { memberName: 'a' })).rejects.toMatchObject({
      code: 'taken',
    })
    expect(fresh.restart().networks.find('lab').can('issue')).toBeDefined()
  })

  it('is of no use with another passphrase, in another network, or damaged', async () => {
    const { networks, armored } = await exported()
    await expect(networks.importRoot('lab', armored, 'another one')).rejects.toMatchObject({
      code: 'not-allowed',
      message: expect.stringContaining('passphrase'),
    })
    const other = makeFounder()
    await expect(other.networks.importRoot('lab', armored, PASSPHRASE)).rejects.toMatchObject({ code: 'usage' })
    for (const bad of [
      '',
      'x',
      armored.slice(0, -60),
      armored.replace('END', 'DNE'),
      `${armored}${' '.repeat(20_000)}x`,
    ])
      await expect(networks.importRoot('lab', bad, PASSPHRASE)).rejects.toMatchObject({ code: 'corrupt' })
    await expect(networks.exportRoot('lab', 'short')).rejects.toMatchObject({ code: 'usage' })
  })

  it('is not taken out of what is no export, and what is in there is not told', async () => {
    for (const text of ['{}', 'secret words', '{"v":1,"network":"ab","rootKey":"secret words"}']) {
      const encrypter = new Encrypter()
      encrypter.setPassphrase(PASSPHRASE)
      encrypter.setScryptWorkFactor(QUICK)
      const error = await openRoot(armor.encode(await encrypter.encrypt(text)), PASSPHRASE).catch((one: unknown) => one)
      expect(error).toMatchObject({ code: 'corrupt' })
      expect(JSON.stringify([(error as Error).message, (error as Error).cause])).not.toContain('secret words')
    }
    const keyed = new Encrypter()
    keyed.addRecipient('age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p')
    const file = armor.encode(await keyed.encrypt('x'))
    await expect(openRoot(file, PASSPHRASE)).rejects.toThrow(/for a key/)
  })

  it('of bytes that were changed is never opened, and asks for no more work than it may', async () => {
    const { armored } = await exported()
    const good = armor.decode(armored)
    const heavy = Buffer.from(good).toString('latin1').replace(` ${QUICK}\n`, ' 31\n')
    await expect(openRoot(armor.encode(Buffer.from(heavy, 'latin1')), PASSPHRASE)).rejects.toThrow(/work factor/)
    const at = fc.nat(good.byteLength - 1)
    await fc.assert(
      fc.asyncProperty(at, fc.integer({ min: 1, max: 255 }), async (place, change) => {
        const bytes = Uint8Array.from(good)
        bytes[place] = (bytes[place] ?? 0) ^ change
        // A work factor up to the limit is work that is done, for half a minute of this test.
        const [, factor] = / (\d+)\n/.exec(Buffer.from(bytes).toString('latin1')) ?? []
        fc.pre(factor === undefined || Number(factor) === QUICK || Number(factor) > 20)
        await expect(openRoot(armor.encode(bytes), PASSPHRASE)).rejects.toBeInstanceOf(AgentError)
      }),
      { numRuns: 60 },
    )
  })

  it('is opened by the library as any age file', async () => {
    const { armored, net } = await exported()
    const decrypter = new Decrypter()
    decrypter.addPassphrase(PASSPHRASE)
    expect(JSON.parse(await decrypter.decrypt(armor.decode(armored), 'text'))).toMatchObject({ v: 1, network: net.id })
  })

  it.skipIf(!hasAge)(
    'is opened by age, and what age encrypts is opened here, with the work that people get',
    async () => {
      const { networks, net, directory } = makeFounder()
      const [file, plain, back] = ['root.age', 'root.json', 'back.age'].map((name) => join(directory, name)) as [
        string,
        string,
        string,
      ]
      writeFileSync(file, await networks.exportRoot('lab', PASSPHRASE))
      expect(await runAge(`-d -o ${plain} ${file}`, 'wrong passphrase')).not.toBe(0)
      expect(await runAge(`-d -o ${plain} ${file}`, PASSPHRASE)).toBe(0)
      expect(JSON.parse(readFileSync(plain, 'utf8'))).toMatchObject({ v: 1, network: net.id, name: 'lab' })
      expect(await runAge(`-p -a -o ${back} ${plain}`, PASSPHRASE)).toBe(0)
      networks.removeRoot('lab')
      await networks.importRoot('lab', readFileSync(back, 'utf8'), PASSPHRASE)
      expect(net.can('issue')).toBeDefined()
    },
    60_000,
  )
})
