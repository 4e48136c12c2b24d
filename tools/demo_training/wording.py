"""The words of the demo's problems: names, things, sentences and a general vocabulary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrase:
    """A sentence of a problem.

    ``{}`` stands for a number, ``[N]`` for the owner, ``[S]``/``[s]`` for the owner's name or
    pronoun, ``[M]`` for somebody else, ``[it]`` for the things. ``shown`` is false where the operand
    is a word such as "half"; ``switches`` is true where the story goes on with ``[M]``.
    """

    text: str
    shown: bool = True
    switches: bool = False


def _split(words: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(words.split())


OPENINGS = (
    Phrase("[N] has {} [it]."),
    Phrase("[N] has {} [it]."),
    Phrase("[N] starts with {} [it]."),
    Phrase("[N] buys {} [it]."),
    Phrase("[N] finds {} [it]."),
    Phrase("[N] made {} [it]."),
    Phrase("There are {} [it] on the table of [N]."),
)
PRODUCT_OPENINGS = (
    Phrase("[N] buys {} boxes of {} [it] each."),
    Phrase("[N] has {} bags with {} [it] in each."),
    Phrase("[N] makes {} [it] a day for {} days."),
    Phrase("[N] fills {} shelves with {} [it] each."),
)
STEPS: dict[str, tuple[Phrase, ...]] = {
    "+": (
        Phrase("[S] buys {} more."),
        Phrase("[S] finds {} more [it]."),
        Phrase("[M] gives [him] {} more."),
        Phrase("Then [s] gets {} more [it]."),
        Phrase("[S] makes {} more."),
        Phrase("[M] has {} more [it] than [N].", switches=True),
    ),
    "-": (
        Phrase("[S] gives {} to [M]."),
        Phrase("[S] loses {}."),
        Phrase("[S] sells {} of them."),
        Phrase("Then [s] gives away {} [it]."),
        Phrase("[M] takes {} of them."),
        Phrase("[M] has {} fewer [it] than [N].", switches=True),
    ),
    "*": (
        Phrase("[M] has {} times as many [it] as [N].", switches=True),
        Phrase("[M] has {} times as many.", switches=True),
        Phrase("A week later [s] has {} times as many."),
        Phrase("[M] has twice as many [it] as [N].", shown=False, switches=True),
        Phrase("Then [s] doubles them.", shown=False),
    ),
    "/": (
        Phrase("[S] puts them equally in {} bags and keeps one bag."),
        Phrase("[S] shares them equally among {} people and keeps one share."),
        Phrase("[S] splits them into {} equal piles and takes one."),
        Phrase("[S] sells half of them.", shown=False),
        Phrase("[M] has half as many [it] as [N].", shown=False, switches=True),
    ),
}
TERMINAL_STEPS: dict[str, tuple[Phrase, ...]] = {
    "*": (
        Phrase("[S] sells them for {} dollars each. How many dollars does [s] get?"),
        Phrase("Each one costs {} dollars. How many dollars do they cost?"),
    ),
    "/": (
        Phrase("[S] shares them equally among {} friends. How many [it] does each friend get?"),
        Phrase("[S] puts them equally in {} boxes. How many [it] are in each box?"),
    ),
}
FINAL_QUESTIONS = (
    Phrase("How many [it] does [N] have now?"),
    Phrase("How many [it] does [N] have?"),
    Phrase("How many [it] does [s] have now?"),
    Phrase("How many does [N] have?"),
)
MEN = _split(
    "Tom Ben Sam Max Leo Jack Paul Mark John James David Peter Adam Noah Luke Ryan Carl Eric Frank"
    " George Henry Ivan Jim Kevin Liam Mike Nick Oscar Robert Steve Tim Victor Will Bob Dan Alex"
    " Daniel Jason Omar Hugo"
)
WOMEN = _split(
    "Anna Sara Mia Emma Lily Kate Lucy Jane Julia Maria Nina Olivia Rosa Sophie Tina Amy Beth Clara"
    " Diana Ella Fiona Grace Helen Irene Jenny Karen Laura Mary Nora Rachel Susan Wendy Zoe Alice"
    " Betty Carla Janet Lisa Emily Eva"
)
ITEMS = _split(
    "pens apples books coins cards marbles stickers pencils eggs cookies balls toys oranges flowers"
    " stamps shells candles cups plates shirts hats shoes socks keys stones photos tickets balloons"
    " candies cakes muffins bananas pears lemons plums peaches grapes berries nuts seeds leaves"
    " sticks ropes bottles cans jars spoons forks knives bowls chairs lamps clocks watches rings"
    " beads buttons ribbons boxes bags baskets crayons markers notebooks erasers rulers papers"
    " letters cars trucks trains boats planes kites dolls puzzles games blocks robots bikes fish"
    " birds chickens ducks cows sheep goats horses dogs cats rabbits turtles frogs bees tomatoes"
    " potatoes carrots onions peppers donuts pies pizzas sandwiches tarts roses tulips trees plants"
    " magnets badges posters bracelets necklaces scarves gloves jackets bricks tiles nails screws"
    " tools chocolates lollipops pancakes points dollars"
)
UNKNOWN_NAME = "Xqz"
UNKNOWN_ITEM = "xqzs"
EXTRA_WORDS = """
a an the and or but if so then than that this these those there here when while after before later
again also still only just not no yes all both each every some any many much more most less few fewer
other another same one two three four five six seven eight nine ten first second third last next
half third quarter double triple twice once total together altogether left remaining rest away out in
on at by for from of to with without into onto over under up down off about around between among per
is are was were be been being has have had do does did will would can could may might must should get
gets got give gives gave given take takes took taken buy buys bought sell sells sold find finds found
lose loses lost make makes made eat eats ate use uses used put puts keep keeps kept share shares
shared split splits divide divides divided pack packs packed fill fills filled add adds added remove
removes removed receive receives received bring brings brought throw throws threw break breaks broke
collect collects collected pick picks picked plant plants planted need needs needed want wants wanted
earn earns earned spend spends spent pay pays paid cost costs save saves saved read reads write writes
start starts started end ends ended go goes went come comes came see sees saw return returns returned
donate donates donated drop drops dropped bake bakes baked cook cooks cooked send sends sent
he she they it we you I him her them his hers their theirs its my your our who what which how why
where He She They It We You There Then After Before Later Now Each Every All Both If In On At For From
How What Which Who When Where The A An Half Some And But So Also Finally Today Yesterday Tomorrow
Monday Tuesday Wednesday Thursday Friday Saturday Sunday morning afternoon evening night today
yesterday tomorrow day days week weeks month months year years hour hours minute minutes time times
mother father brother sister friend friends teacher student students child children boy boys girl
girls man woman people person family parents uncle aunt cousin neighbor class team school shop store
market park garden farm house home room kitchen table shelf shelves box bag basket bottle jar cup
plate pile piles group groups row rows pack packs set sets pair pairs dozen piece pieces money dollar
cents price number amount item items thing things pen apple book coin card marble sticker pencil egg
cookie ball toy orange flower stamp shell candle hat shirt key stone photo ticket balloon candy cake
tree dog cat bird car bike game old new big small red blue green yellow white black large little
equal equally exactly already now always never long short fast slow good bad nice happy free extra
answer question problem step Answer Question Let Calculate Find Tell me please
His Her Their My Your brings bag box Mr Mrs Ms
"""
