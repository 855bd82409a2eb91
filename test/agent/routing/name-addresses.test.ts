/** Loopback addresses of names: stable, one name each, kept over restarts; and the ranges that agents of one machine have to themselves. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { addressRange } from '../../../agent/config/values.ts'
import {
  addressAt,
  ClaimedRange,
  isClaimed,
  placeOf,
  reverseZone,
  showRange,
  sizeOf,
} from '../../../agent/routing/address-range.ts'
import { NameAddresses } from '../../../agent/routing/name-addresses.ts'
import { openDatabase } from '../../../agent/state/database.ts'

const directory = mkdtempSync(join(tmpdir(), 'undernet-names-'))
afterAll(() => rmSync(directory, { recursive: true }))
let files = 0
const newFile = () => join(directory, `${files++}.db`)
const range = addressRange.read('127.77.0.0/16', '/') as NonNullable<ReturnType<typeof addressRange.read>>
const small = addressRange.read('127.77.5.0/24', '/') as typeof range

describe('addresses of names', () => {
  it('are the same after a restart, and no two names share one', () => {
    const file = newFile()
    const names = Array.from({ length: 500 }, (_, nth) => `s${nth}.home.internal`)
    const db = openDatabase(file)
    const before = new NameAddresses(db, range)
    const given = names.map((name, nth) => before.use(name, nth))
    expect(new Set(given).size).toBe(names.length)
    db.close()
    const after = new NameAddresses(openDatabase(file), range)
    expect(names.map((name) => after.get(name))).toEqual(given)
    expect(given.map((address) => after.nameAt(address))).toEqual(names)
    expect(after.usedSince(498)).toMatchObject([{ name: 's499.home.internal' }, { name: 's498.home.internal' }])
  })

  it('are mostly the same on every node, since they follow from the name', () => {
    const [one, other] = [
      new NameAddresses(openDatabase(newFile()), range),
      new NameAddresses(openDatabase(newFile()), range),
    ]
    other.use('something.else.internal', 1)
    expect(one.use('web.home.internal', 1)).toBe(other.use('web.home.internal', 1))
  })

  it('are taken from names that were not used for longest when there is no room', () => {
    const addresses = new NameAddresses(openDatabase(newFile()), small)
    for (let nth = 0; nth < 400; nth += 1) {
      addresses.use(`s${nth}.home.internal`, nth)
      addresses.use('kept.home.internal', nth)
    }
    expect(addresses.get('s0.home.internal')).toBeUndefined()
    expect(addresses.get('s399.home.internal')).toMatch(/^127\.77\.5\./)
    expect(addresses.get('kept.home.internal')).toBeDefined()
    const kept = addresses.usedSince(0).map(({ address }) => address)
    expect(new Set(kept).size).toBe(kept.length)
    expect(kept.length).toBeLessThanOrEqual(sizeOf(small))
  })
})

describe('a range', () => {
  it('knows its own addresses and no others', () => {
    fc.assert(
      fc.property(fc.constantFrom(range, small), fc.nat(), fc.ipV4(), (of, nth, other) => {
        const place = nth % sizeOf(of)
        expect(placeOf(of, addressAt(of, place))).toBe(place)
        const found = placeOf(of, other)
        if (found !== undefined) expect(addressAt(of, found)).toBe(other)
      }),
    )
    for (const none of [
      '',
      '127.77.0',
      '127.77.0.1.2',
      '127.77.0.256',
      'a.b.c.d',
      '127.77.0.0',
      '127.77.0.1',
      '127.77.255.255',
    ])
      expect([none, placeOf(range, none)]).toEqual([none, undefined])
    expect([showRange(range), reverseZone(range), reverseZone(small)]).toEqual([
      '127.77.0.0/16',
      '77.127.in-addr.arpa',
      '5.77.127.in-addr.arpa',
    ])
  })

  it('is one agent’s: the next has another, keeps it, and one that is taken is said to be', async () => {
    const peerId = `12D3KooW${process.pid}`
    const [first, second] = [openDatabase(newFile()), openDatabase(newFile())]
    expect(isClaimed(second)).toBe(false)
    const one = await ClaimedRange.claim(first, peerId, undefined)
    const other = await ClaimedRange.claim(second, peerId, undefined)
    expect(other.range).not.toEqual(one.range)
    await expect(ClaimedRange.claim(openDatabase(newFile()), peerId, one.range)).rejects.toMatchObject({
      code: 'taken',
      message: expect.stringContaining(showRange(one.range)),
    })
    await one[Symbol.asyncDispose]()
    await other[Symbol.asyncDispose]()
    expect(isClaimed(second)).toBe(true)
    await using again = await ClaimedRange.claim(second, peerId, undefined)
    expect(again.range).toEqual(other.range)
  })
})
