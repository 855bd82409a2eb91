/** Where this node publishes, and where it shares: nothing goes out by a guess. */
import { describe, expect, it } from 'vitest'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { AgentError } from '../../../agent/error.ts'
import { Places, type PlacesDeps } from '../../../agent/node/places.ts'

type Stub = { shares?: string[]; fault?: string; missing?: string; isRunning?: boolean }

/** A node that is in these networks. */
function places({ open, ...closed }: { open?: Stub } & Record<string, Stub>): Places {
  const publications = ({ shares = [] }: Stub) => ({ has: (ref: string) => shares.includes(ref) })
  const idOf = (name: string) => Buffer.from(name.padEnd(32)).toString('hex')
  const entries = Object.entries(closed)
  const running = entries.filter(([, { isRunning = true }]) => isRunning)
  const find = (reference: string) => {
    const [name] = entries.find((entry) => entry[0] === reference || idOf(entry[0]).startsWith(reference)) ?? []
    if (name === undefined) throw new AgentError('not-found', `no network ${reference}`)
    return { name, id: idOf(name) }
  }
  const list = running.map(([name, stub]) => ({
    membership: {
      name,
      id: idOf(name),
      fault: () => (stub.fault === undefined ? undefined : { fault: 'expired', why: stub.fault }),
    },
    publications: publications(stub),
    connected: () => ['member'],
    publishingRefusal: () => stub.missing,
  }))
  return new Places({
    openNetwork: open && { publications: publications(open) },
    closed: { list: () => list },
    entrance: { networks: { find } },
    host: { connected: () => ['anybody'] },
  } as unknown as PlacesDeps)
}

describe('publishing', () => {
  it('is in the only network that there is, open or closed', () => {
    expect(places({ open: {} }).toPublish(undefined)).toMatchObject({ name: 'open', id: OPEN_NETWORK_ID })
    const home = places({ home: {} }).toPublish(undefined)
    expect(home.name).toBe('home')
    expect(home.connected()).toEqual(['member'])
  })

  it('has to be told where when there are several, and when there is none', () => {
    expect(() => places({ open: {}, home: {} }).toPublish(undefined)).toThrow('this node is in 2 networks: open, home')
    expect(() => places({ home: {}, work: {} }).toPublish(undefined)).toThrow('this node is in 2 networks: home, work')
    expect(() => places({}).toPublish(undefined)).toThrow('this node is in no network')
  })

  it('is where it is told, by name or by the beginning of the id', () => {
    const all = places({ open: {}, home: {}, work: {} })
    expect(all.toPublish('open').id).toBe(OPEN_NETWORK_ID)
    expect(all.toPublish('work').name).toBe('work')
    expect(all.toPublish(Buffer.from('home').toString('hex')).name).toBe('home')
    expect(() => all.toPublish('nowhere')).toThrow('no network nowhere')
    expect(() => places({ home: {} }).toPublish('open')).toThrow('no network open')
  })

  it('is refused where nobody would see it, and says why', () => {
    const said = (stub: Stub) => {
      try {
        places({ home: stub }).toPublish(undefined)
      } catch (error) {
        return error
      }
    }
    expect(said({ missing: 'no grant gives it' })).toMatchObject({
      code: 'not-allowed',
      message: 'nobody in "home" would see it: no grant gives it',
      next: expect.stringContaining('agent policy show') as string,
    })
    expect(said({ fault: 'the certificate ended', missing: 'no grant gives it' })).toMatchObject({
      code: 'not-allowed',
      message: 'nobody in "home" would see it: the certificate ended',
      next: expect.stringContaining('agent status') as string,
    })
  })

  it('is refused in a network that does not run, and does not go elsewhere', () => {
    expect(() => places({ open: {}, home: { isRunning: false } }).toPublish('home')).toThrow('does not run')
  })
})

describe('what is shared', () => {
  it('is looked for in all networks, and in the one that is named', () => {
    const all = places({ open: {}, home: { shares: ['notes'] }, work: { shares: ['plan'] } })
    expect(all.sharing('plan', undefined).name).toBe('work')
    expect(all.sharing('plan', 'home').name).toBe('home')
    // Any place says that it is not there.
    expect(all.sharing('nothing', undefined).name).toBe('open')
    expect(() => places({}).sharing('notes', undefined)).toThrow('this node is in no network')
  })

  it('in several networks has to be told apart', () => {
    const all = places({ open: { shares: ['notes'] }, home: { shares: ['notes'] } })
    expect(() => all.sharing('notes', undefined)).toThrow('this node shares notes in 2 networks')
    expect(all.sharing('notes', 'home').name).toBe('home')
  })
})

it('names are the networks that this node is in, and the open one only if it takes part', () => {
  const all = places({ open: {}, home: {} })
  expect(all.idOf(undefined)).toBeUndefined()
  expect(all.idOf('open')).toBe(OPEN_NETWORK_ID)
  expect(all.idOf('home')).toBe(Buffer.from('home'.padEnd(32)).toString('hex'))
  expect(() => places({ home: {} }).idOf('open')).toThrow('no network open')
})
