"""The descriptions in XMP packets: of image files, and of files next to them."""

from __future__ import annotations

import codecs
import re
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from openblip.errors import ImageError
from openblip.jobs.packets import Bytes, read_extended_packet, read_packet, with_packet

DC = "http://purl.org/dc/elements/1.1/"
IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def read_description(data: Bytes) -> str | None:
    """Return the `dc:description` of an image file, in any form that XMP allows.

    Args:
        data: Content of a JPEG, PNG or WebP file.

    Returns:
        The description, in its default language if it has one, or `None`.

    Raises:
        ImageError: If the file is damaged or has another format.
    """
    packet = read_packet(data)
    return None if packet is None else Packet(packet).get(DC, "description")


def with_description(data: bytes, text: str, *, replace_alt: bool = True) -> bytes:
    """Return the file with `text` as its `dc:description` and `AltTextAccessibility`.

    Args:
        data: Content of a JPEG, PNG or WebP file.
        text: The description.
        replace_alt: Also replace an `AltTextAccessibility` that differs from the previous description.

    Returns:
        The new content of the file.

    Raises:
        ImageError: If the file is damaged, has another format, or cannot hold the text.
    """
    extended = read_extended_packet(data)
    if extended is not None and Packet(extended).get(DC, "description") is not None:
        raise ImageError("its description is in an extended XMP packet, which cannot be changed; file not modified")
    packet = Packet(read_packet(data))
    packet.describe(text, replace_alt=replace_alt)
    return with_packet(data, packet.to_packet())


_BEGIN = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_END = b'<?xpacket end="w"?>'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'.encode()
_XML, _XMLNS = "http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/"
# An attribute must not contain raw line breaks and tabs: a parser turns them into blanks. `toxml` of older versions of
# Python writes them raw, so these characters, which no text may contain, take their place until the text is complete.
_ESCAPES = {"\ufdd0": "&#10;", "\ufdd1": "&#13;", "\ufdd2": "&#9;"}
_TO_MARK = str.maketrans({"\n": "\ufdd0", "\r": "\ufdd1", "\t": "\ufdd2"})


class Packet:
    """The properties of an XMP packet or of an XMP file. Everything outside of the changed properties is kept.

    Args:
        content: The packet; a new one if `None`.

    Raises:
        ImageError: If the packet is damaged, or declares entities.
    """

    def __init__(self, content: bytes | None = None) -> None:
        content = _EMPTY if content is None else content
        text = decode_text(content).strip("\0 \r\n\t")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities could expand to gigabytes
            raise ImageError("the XMP packet contains a DOCTYPE or ENTITY declaration; file not modified")
        try:
            self._document = minidom.parseString(re.sub(r"^<\?xml[^>]*\?>", "", text).encode())
        except (ExpatError, ValueError, LookupError) as error:
            raise ImageError(f"cannot read the XMP packet: {error}") from error
        roots = self._document.getElementsByTagNameNS(RDF, "RDF")
        if not roots:
            raise ImageError("cannot read the XMP packet: it has no RDF element")
        self._rdf = roots[0]
        root = self._document.documentElement
        assert root is not None
        self._root = root
        # The text around the root element: the declaration, processing instructions, comments and padding.
        closing = max(text.rfind(f"</{root.tagName}"), text.rfind(f"<{root.tagName}"))
        self._around = text[: text.find(f"<{root.tagName}")], text[text.find(">", closing) + 1 :]

    @property
    def _nodes(self) -> list[minidom.Element]:
        """The elements that hold the properties of the image. Descriptions of other images are deeper."""
        return [child for child in self._rdf.childNodes if isinstance(child, minidom.Element)]

    def get(self, namespace: str, name: str) -> str | None:
        """Return a text property: an attribute, an element, or language alternatives, the default language first.

        Args:
            namespace: Namespace of the property.
            name: Local name of the property.

        Returns:
            The text, or `None` if it is missing or blank.
        """
        texts: list[str] = []
        for node in self._nodes:
            if node.hasAttributeNS(namespace, name):
                texts.append(node.getAttributeNS(namespace, name))
            for element in _children(node, namespace, name):
                items = element.getElementsByTagNameNS(RDF, "li")
                if not items:
                    texts.append(_text_of(element))
                elif element.getElementsByTagNameNS(RDF, "Alt"):
                    texts += [_text_of(item) for item in sorted(items, key=lambda item: not _is_default(item))]
                else:
                    texts.append("\n".join(filter(str.strip, map(_text_of, items))))
        return next((text for text in texts if text.strip()), None)

    def set(self, namespace: str, name: str, text: str) -> None:
        """Set a text property in the default language. Texts in other languages stay.

        Args:
            namespace: Namespace of the property.
            name: Name of the property with its usual prefix, such as `dc:description`.
            text: The text.
        """
        prefix, local_name = name.split(":")
        elements = []
        for node in self._nodes:
            if node.hasAttributeNS(namespace, local_name):  # the short form of the property
                node.removeAttributeNS(namespace, local_name)
            elements += _children(node, namespace, local_name)
        rdf = self._rdf.prefix or "rdf"
        element = elements[0] if elements else None
        alternatives = None
        if element is not None:
            alternatives = next(iter(element.getElementsByTagNameNS(RDF, "Alt")), None)
        if element is None or alternatives is None:
            new = self._document.createElementNS(namespace, name)
            new.setAttributeNS(_XMLNS, f"xmlns:{prefix}", namespace)
            alternatives = self._document.createElementNS(RDF, f"{rdf}:Alt")
            new.appendChild(alternatives)
            if element is None or element.parentNode is None:
                self._description_node().appendChild(new)
            else:
                element.parentNode.replaceChild(new, element)
        item = next((item for item in alternatives.getElementsByTagNameNS(RDF, "li") if _is_default(item)), None)
        if item is None:
            item = self._document.createElementNS(RDF, f"{rdf}:li")
            item.setAttributeNS(_XML, "xml:lang", "x-default")
            alternatives.insertBefore(item, alternatives.firstChild)
        for child in list(item.childNodes):
            item.removeChild(child)
        if item.hasAttributeNS(RDF, "parseType"):
            item.removeAttributeNS(RDF, "parseType")
        # XML allows neither control characters, except tabs and line breaks, nor lone surrogates.
        valid = [char for char in text if char in "\t\n" or (char >= " " and not "\ud800" <= char <= "\udfff")]
        item.appendChild(self._document.createTextNode("".join(valid)))

    def describe(self, text: str, *, replace_alt: bool = True) -> None:
        """Set `dc:description`, and `AltTextAccessibility` if it is missing or held the same text.

        Args:
            text: The text.
            replace_alt: Also replace a different `AltTextAccessibility`.
        """
        old = self.get(DC, "description")
        alt = self.get(IPTC, "AltTextAccessibility")
        self.set(DC, "dc:description", text)
        if replace_alt or alt is None or (old is not None and alt.strip() == old.strip()):
            self.set(IPTC, "Iptc4xmpCore:AltTextAccessibility", text)

    def root(self) -> str:
        """Return the root element as XML."""
        for element in (self._root, *self._root.getElementsByTagName("*")):
            for attribute in list(element.attributes.values()):
                if any(char in attribute.value for char in "\n\r\t"):
                    attribute.value = attribute.value.translate(_TO_MARK)
            for child in element.childNodes:
                if isinstance(child, minidom.Text) and "\r" in child.data:
                    child.data = child.data.replace("\r", "\ufdd1")
        xml = self._root.toxml()
        for mark, escape in _ESCAPES.items():
            xml = xml.replace(mark, escape)
        return xml

    def to_packet(self) -> bytes:
        """Return the packet as image files contain it."""
        return _BEGIN + self.root().encode() + b"\n" + _END

    def to_file(self) -> bytes:
        """Return the packet as an XMP file, with the text around it that the file had, in UTF-8."""
        before, after = self._around
        if not before.strip() and not after.strip():
            return self.to_packet() + b"\n"
        before = re.sub(r"(<\?xml[^>]*encoding=)(['\"])[^'\"]*\2", r"\1\2UTF-8\2", before)
        return (before + self.root() + after).encode() + b"\n"

    def _description_node(self) -> minidom.Element:
        """Return the rdf:Description that new properties are added to."""
        for node in self._nodes:
            if node.namespaceURI == RDF and node.localName == "Description":
                return node
        prefix = self._rdf.prefix or "rdf"
        description = self._document.createElementNS(RDF, f"{prefix}:Description")
        description.setAttributeNS(RDF, f"{prefix}:about", "")
        self._rdf.appendChild(description)
        return description


_ENCODINGS = {  # by the first bytes; the longer ones come first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}


def decode_text(content: bytes) -> str:
    """Return a text in UTF-8, or in UTF-16 or UTF-32 if a byte order mark or the first bytes show that.

    Raises:
        ImageError: If the bytes are no such text.
    """
    encoding = next((name for start, name in _ENCODINGS.items() if content.startswith(start)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ImageError(f"cannot read the XMP packet: it is not {encoding.removesuffix('-sig').upper()}") from error


def _children(node: minidom.Element, namespace: str, name: str) -> list[minidom.Element]:
    children = [child for child in node.childNodes if isinstance(child, minidom.Element)]
    return [child for child in children if child.namespaceURI == namespace and child.localName == name]


def _text_of(element: minidom.Element) -> str:
    """Return the text of a property or of an item, which may have qualifiers."""
    for node in (element, *element.getElementsByTagNameNS(RDF, "Description")):
        if node.hasAttributeNS(RDF, "value"):
            return node.getAttributeNS(RDF, "value")
    values = element.getElementsByTagNameNS(RDF, "value")
    children = (values[0] if values else element).childNodes
    return "".join(child.data for child in children if isinstance(child, minidom.Text))


def _is_default(item: minidom.Element) -> bool:
    return item.getAttributeNS(_XML, "lang") in ("x-default", "")
